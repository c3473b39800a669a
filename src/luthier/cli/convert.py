"""Turn a pickle checkpoint or a GGUF file into a folder of safetensors in Hugging Face's form."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="a folder of pickles, a pickle, or a .gguf file", show_default=False)],
    out: Annotated[Path, typer.Argument(help="the folder to write", show_default=False)],
    dtype: Annotated[str | None, typer.Option(help="of the weights out of GGUF; default float32", show_default=False)] = None,
) -> None:
    """Make safetensors of a pickle (opened in a child process, weights only) or of a GGUF file (quantised weights become plain numbers)."""
    from luthier.sources.directory import PICKLES
    from luthier.sources.open import locate

    path = locate(source)
    if path.suffix == ".gguf":
        from luthier.sources.load import load_model

        load_model(source, dtype).save(out)
    elif path.is_dir() or path.suffix in PICKLES:
        from luthier.sources.convert import convert_pickles

        convert_pickles(path, out)
    else:
        raise ValueError(f"{source}: neither a pickle ({', '.join(PICKLES)}) nor a .gguf file")
    typer.echo(f"written to {out}")
