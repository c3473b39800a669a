"""Checkpoints: a folder step-N of safetensors and JSON that is there whole or not at all.

Everything is written into a hidden folder, flushed to the disk, and renamed; state.json names each file with its SHA-256. What a process
killed in the middle leaves behind is a hidden folder that the next save removes.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.config import RunFailed

STATE = "state.json"


@dataclass
class Saved:
    """What a checkpoint holds: groups of named tensors, and a state of JSON values (tensors inside it travel too)."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def write(folder: Path, saved: Saved) -> Path:
    """Saves under folder/step-N, unless it is there already. RunFailed when the disk does not take it."""
    final = folder / f"step-{saved.step}"
    if (final / STATE).is_file():
        return final
    partial = folder / f".step-{saved.step}.partial"
    try:
        _clean(folder)
        partial.mkdir(parents=True)
        _fill(partial, saved)
        partial.rename(final)
        _flush(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunFailed(_sentence(folder, final, error)) from error
    return final


def read(path: Path) -> Saved:
    """Reads a checkpoint, each file compared with its recorded hash. ValueError names the file that is not whole."""
    if not (path / STATE).is_file():
        raise FileNotFoundError(errno.ENOENT, f"no checkpoint here: {STATE} is missing", str(path))
    try:
        record = json.loads((path / STATE).read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(_damaged(path / STATE)) from None
    tensors = {}
    for name, expected in record["files"].items():
        file = path / name
        if not file.is_file() or _hash(file) != expected:
            raise ValueError(_damaged(file))
        tensors[file.stem] = load_file(file)
    inner = tensors.pop("inner", {})
    return Saved(record["step"], tensors, _join(record["state"], inner))


def _damaged(file: Path) -> str:
    return f"{file}: damaged since it was written; resume from another checkpoint in {file.parents[1]}"


def steps(folder: Path) -> list[int]:
    """The steps of the whole checkpoints in a folder, oldest first."""
    found = [re.fullmatch(r"step-(\d+)", path.name) for path in folder.glob("step-*") if (path / STATE).is_file()]
    return sorted(int(match[1]) for match in found if match)


def newest(folder: Path) -> Path | None:
    """The checkpoint to go on from."""
    there = steps(folder)
    return folder / f"step-{there[-1]}" if there else None


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Removes all but the newest `keep` and the best."""
    for step in steps(folder)[:-keep]:
        if step != best:
            path = folder / f"step-{step}"
            hidden = path.with_name(f".step-{step}.partial")  # renamed first: a folder half removed is no checkpoint
            shutil.rmtree(hidden, ignore_errors=True)
            path.rename(hidden)
            shutil.rmtree(hidden)


def set_aside(folder: Path, step: int) -> list[Path]:
    """Renames the checkpoints after `step`: the run goes on from there and will write its own."""
    moved = []
    for later in [there for there in steps(folder) if there > step]:
        aside = folder / f"aside-step-{later}"
        shutil.rmtree(aside, ignore_errors=True)
        moved.append((folder / f"step-{later}").rename(aside))
    return moved


def _fill(partial: Path, saved: Saved) -> None:
    inner: dict[str, Tensor] = {}
    state = _split(saved.state, inner)
    for name, group in [*saved.tensors.items(), ("inner", inner)]:
        if group:
            write_tensors(partial / f"{name}.safetensors", group)
    files = {path.name: _hash(path) for path in sorted(partial.iterdir())}
    record = json.dumps({"step": saved.step, "files": files, "state": state}, indent=1)
    (partial / STATE).write_text(record, encoding="utf-8")
    for path in partial.iterdir():
        _flush(path)
    _flush(partial)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file. OSError when the disk does not take it."""
    try:
        save_file(_plain(tensors), path)
    except SafetensorError as error:  # its own words for what the operating system said
        number = errno.ENOSPC if "space" in str(error) else errno.EIO
        raise OSError(number, str(error), str(path)) from error


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, in order, each with memory of its own: safetensors refuses shared memory."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        shared = value.untyped_storage().nbytes() != value.nbytes or value.data_ptr() in seen
        plain[name] = value.clone() if shared else value
        seen.add(value.data_ptr())
    return plain


def _clean(folder: Path) -> None:
    for path in folder.glob(".step-*.partial"):
        shutil.rmtree(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sentence(folder: Path, final: Path, error: OSError) -> str:
    before = newest(folder)
    kept = (
        f"the checkpoint before it is whole, {before}; make room and go on with --resume auto"
        if before
        else "no checkpoint was there before"
    )
    return f"cannot write the checkpoint {final}: {error.strerror or error}; {kept}"


def _split(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree with every tensor replaced by its number."""
    if isinstance(tree, Tensor):
        tensors[str(len(tensors))] = tree
        return {"__tensor__": str(len(tensors) - 1)}
    if isinstance(tree, dict):
        return {str(key): _split(value, tensors) for key, value in tree.items()}
    return [_split(value, tensors) for value in tree] if isinstance(tree, list | tuple) else tree


def _join(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        return tensors[tree["__tensor__"]] if "__tensor__" in tree else {key: _join(value, tensors) for key, value in tree.items()}
    return [_join(value, tensors) for value in tree] if isinstance(tree, list) else tree
