"""A run's folder: what may be started in it, what may be resumed, and the files that say what the run was. No torch here."""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.config import dump, plain, read_yaml

CONFIG, MANIFEST, RESULT, CHECKPOINTS = "config.yaml", "manifest.json", "result.json", "checkpoints"
PREDICTIONS = "predictions.jsonl"
PACKAGES = ("luthier", "torch", "tokenizers", "safetensors", "numpy")
# What may differ when a run goes on: how long, where, what is kept and looked at; not what the weights depend on.
FREE = (
    "output", "evaluation", "samples", "plugins", "device", "training.steps", "training.epochs", "training.evaluate_every",
    "training.save_every", "training.keep", "training.result", "training.log_every", "training.tensorboard",
)  # fmt: skip


def check(folder: Path, resume: str | Path | None) -> None:
    """Refuses to write over something, or to resume what is no run."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; output must be a folder")
    used = folder.is_dir() and any(folder.iterdir())
    if used and resume is None:
        raise FileExistsError(f"{folder} is not empty; go on there with --resume auto, or choose another output")
    if used and not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a run ({CONFIG} is missing); choose another output")


def start(folder: Path, resume: str | Path | None, newest: Path | None) -> Path | None:
    """The checkpoint to go on from; None to begin. `auto` takes the newest whole one and begins where there is none."""
    if resume is None or str(resume) == "auto":
        return newest if resume is not None else None
    path = Path(resume)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such checkpoint; --resume auto takes the newest one in {folder / CHECKPOINTS}")
    if path.resolve() == folder.resolve():
        return newest
    if path.resolve().parent != (folder / CHECKPOINTS).resolve():
        raise ValueError(f"{path} is not a checkpoint of this run; they lie in {folder / CHECKPOINTS}")
    return path


def check_same(folder: Path, settings: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    """Refuses to resume with other settings or other data, naming each."""
    changed = [words for key, words in changes(folder, settings).items() if not free(key)]
    if changed:
        told = "; ".join(changed)
        raise ValueError(f"{folder / CONFIG}: the run was started with other settings: {told}. Change them back, or choose another output")
    old = json.loads((folder / MANIFEST).read_text(encoding="utf-8")) if (folder / MANIFEST).is_file() else {}
    for key in ("data", "tokenizer", "template"):
        if key in old and old[key] != plain(manifest[key]):
            raise ValueError(f"{folder / MANIFEST}: the {key} changed since the run began; put it back, or choose another output")


def changes(folder: Path, settings: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, str]:
    """The settings that differ from those a run was started with: by key, in words."""
    before, now = flat(read_yaml(folder / CONFIG).values), flat(plain(settings))
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key) and key not in without]
    return {key: f"{key} was {before.get(key)!r} and is {now.get(key)!r}" for key in keys}


def free(key: str) -> bool:
    """Whether a setting may differ when a run goes on."""
    return any(key == free or key.startswith(free + ".") for free in FREE)


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """{"training.rate": 0.001, ...}; lists are values."""
    if not isinstance(values, Mapping) or not values:
        return {prefix: values}
    return {name: value for key, item in values.items() for name, value in flat(item, f"{prefix}.{key}" if prefix else str(key)).items()}


def describe(data: Sequence[str], tokenizer: str | None, template: str | None, parent: str) -> dict[str, Any]:
    """manifest.json: versions, hashes of what went in, and where the weights came from."""
    from importlib.metadata import version  # a tenth of the time that a mistake in a run file takes to be told

    return {
        "parent": parent,
        "data": {path: hash_of(Path(path)) for path in data},
        "tokenizer": tokenizer,
        "template": template,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "command": Path(sys.argv[0]).name},
    }


def hash_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, dump(values))


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(plain(values), indent=1, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSON object a line."""
    write_text(path, "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
