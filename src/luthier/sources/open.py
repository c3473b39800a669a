"""From the name of a source to an opened checkpoint, by the source's form. No torch until a tensor is read."""

from pathlib import Path

from luthier.sources.checkpoint import Checkpoint
from luthier.sources.directory import PICKLES, open_directory, refuse_pickle


def open_checkpoint(source: str | Path) -> Checkpoint:
    """source: a folder in Hugging Face's form, a .gguf file, pkg://package/path, hub://org/name.

    ValueError or OSError, in one sentence, where there is none or it is damaged.
    """
    path = locate(source)
    if path.is_dir() and not (path / "config.json").exists() and any(path.glob("*weights.hdf5")):
        from luthier.sources.hdf5 import open_hdf5, published

        files = published(path)
        if files is None:
            raise ValueError(f"{path}: ELMo is one file *options.json and one *weights.hdf5; there are others beside them")
        checkpoint = open_hdf5(*files)
    elif path.is_dir():
        checkpoint = open_directory(path)
    elif path.suffix == ".gguf":
        from luthier.sources.gguf import open_gguf

        checkpoint = open_gguf(path)
    elif path.suffix in PICKLES:
        refuse_pickle(path, [path])
    elif path.suffix == ".safetensors":
        raise ValueError(f"{path} holds weights but not what they belong to; give its folder, with config.json and the tokenizer beside it")
    else:
        raise ValueError(f"{path}: neither a folder with config.json nor a .gguf file")
    checkpoint.name = str(source)
    return checkpoint


def locate(source: str | Path) -> Path:
    """The file or folder of a source; FileNotFoundError where there is none."""
    text = str(source)
    if text.startswith("pkg://"):
        from luthier.sources.package import package_path

        return package_path(text)
    if text.startswith("hub://"):
        from luthier.sources.hub import hub_path

        return hub_path(text)
    if "://" in text:
        raise ValueError(f"{text}: unknown kind of source; there are a folder, a .gguf file, pkg://package/path and hub://org/name")
    path = Path(source).expanduser()
    if not path.exists():
        hint = f"; a model of the hub is written hub://{text}" if text.count("/") == 1 and not text.startswith((".", "~", "/")) else ""
        raise FileNotFoundError(f"{text}: no such file or folder{hint}")
    return path
