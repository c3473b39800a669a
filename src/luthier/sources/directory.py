"""A folder in Hugging Face's form: config.json, safetensors (one file or shards with an index), tokenizer files, chat template."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.sources.checkpoint import Checkpoint, some
from luthier.sources.tensor_files import Safetensors

if TYPE_CHECKING:
    from luthier.data.tokenizer import Tokenizer

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# One of these makes a folder a tokenizer's, too.
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")


def open_directory(folder: str | Path) -> Checkpoint:
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder}: no config.json, so this is not a model in Hugging Face's form")
    config = read_json(folder / "config.json")
    return Checkpoint(str(folder), config, open_tensors(folder), lambda: read_tokenizer(folder))


def open_tensors(folder: Path) -> Safetensors:
    """The weights of a folder, from all their files."""
    if (folder / INDEX).exists():
        return open_shards(folder)
    if (folder / SINGLE).exists():
        return Safetensors([folder / SINGLE])
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return Safetensors(files)
    refuse_pickle(folder, [path for path in sorted(folder.iterdir()) if path.suffix in PICKLES and is_weights(path)])
    if files:
        raise ValueError(f"{folder}: {len(files)} safetensors files and no {INDEX} that says which belong together; fetch the index too")
    raise FileNotFoundError(f"{folder}: no weights; expected {SINGLE}, or {INDEX} with its shards")


def open_shards(folder: Path) -> Safetensors:
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise ValueError(f"{folder / INDEX}: no weight_map of tensor names to files; fetch the file again")
    names = sorted(set(index.values()))
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{folder / INDEX}: it names files outside its folder")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(f"{folder}: {len(missing)} of {len(names)} weight files are missing: {some(missing)}; fetch them too")
    tensors = Safetensors([folder / name for name in names])
    lost = sorted(name for name, file in index.items() if name not in tensors.file or tensors.file[name].name != file)
    if lost:
        raise ValueError(f"{folder}: {len(lost)} tensors are not in the files that {INDEX} names: {some(lost)}; fetch the files again")
    return tensors


def is_weights(path: Path) -> bool:
    return path.stem not in ("training_args", "optimizer", "scheduler", "rng_state")


def refuse_pickle(folder: Path, files: list[Path]) -> None:
    if files:
        raise ValueError(
            f"{files[0]} is a pickle, which can run code when it is opened, so Luthier does not open it; "
            f"make safetensors of it with: luthier convert {folder} {folder.name}-safetensors"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError names the file and the line where it ends or breaks."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text; it is damaged. Fetch the file again") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg}); it is damaged or cut off. Fetch the file again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: not a table of settings")
    return value


def read_tokenizer(folder: Path) -> "Tokenizer | None":
    if not any((folder / name).exists() for name in TOKENIZERS):
        return None
    from luthier.data.tokenizer import Tokenizer

    return Tokenizer.from_directory(folder)
