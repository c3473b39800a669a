"""Write a model or its adapter in a form that others read: Hugging Face's or peft's."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    source: Annotated[str, typer.Argument(help="a run's folder, or any source of weights", show_default=False)],
    out: Annotated[Path, typer.Argument(help="the folder to write", show_default=False)],
    adapter: Annotated[Path | None, typer.Option(help="an adapter for the source, in peft's form", show_default=False)] = None,
    merge: Annotated[bool, typer.Option("--merge", help="fold the adapter into the weights: one whole model")] = False,
    to: Annotated[str, typer.Option(help="hf: the whole model; peft: the adapter alone; default: the adapter where there is one")] = "",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored", show_default=False)] = None,
) -> None:
    """Write a model (adapters folded in) or its adapter alone. Files of the same names at OUT are replaced, all or none."""
    if to not in ("", "hf", "peft"):
        raise ValueError(f"--to {to}: there are hf and peft")
    if merge and to == "peft":
        raise ValueError("--merge folds the adapter into the weights, and --to peft wants it alone; leave one of them out")
    from luthier.tuning._load import load

    model = load(source, adapter, dtype)
    if model.attached is None and (merge or to == "peft"):
        raise ValueError(f"{source} has no adapter; name one with --adapter")
    if model.attached is not None and (to == "peft" or not (merge or to)):
        model.save_adapter(out)
        typer.echo(f"adapter written to {out}")
        return
    if model.attached is not None:
        typer.echo(f"merged; the largest difference of a logit is {model.merge():.2g}")
    model.save(out)
    typer.echo(f"model written to {out}")
