"""A grid: its cells equal runs alone, it goes on after a stop, and a cell that fails does not end it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from luthier.comparing.grid import read_grid
from luthier.comparing.runner import compare
from luthier.config import RunFailed
from luthier.run import run
from tinyrun import values

METHODS: dict[str, Any] = {
    "lora": {"kind": "lora", "roles": ["q", "v", "up"], "rank": 2, "dropout": 0.1},
    "prefix": {"kind": "prefix", "length": 2, "start": "lute"},
    "last": {"kind": "freeze", "blocks": "last 1"},
    "norm": {"kind": "freeze", "blocks": [], "also_train": ["norm"]},
    "full": "full",
}


def write_grid(folder: Path, run_changes: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A grid of a tiny run. run_changes: sections of the run, as for tinyrun.values."""
    sections = values(folder, **(run_changes or {}))
    sections.pop("tuning")
    (folder / "run.yaml").write_text(yaml.safe_dump(sections))
    grid = {"run": "run.yaml", "output": str(folder / "grid"), "methods": METHODS, "latency": False, **changes}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name}/{path.name}/{name}": value
        for path in sorted(folder.glob("*/*.safetensors"))
        for name, value in load_file(path).items()
    }


def last_lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("tokens_per_s", "memory_bytes")} for line in lines]


def same_as_alone(path: Path, folder: Path) -> None:
    """Each cell of a finished grid against the same run without a grid: every figure of every step, weights, predictions."""
    grid, cells = read_grid(path)
    for cell in cells:
        alone = replace(cell.run(Path(grid.output)), output=str(folder / "alone" / cell.name))
        run(alone)
        there, here = Path(grid.output) / "cells" / cell.name, folder / "alone" / cell.name
        assert last_lines(there) == last_lines(here), cell.name
        ours, theirs = weights(there), weights(here)
        assert ours.keys() == theirs.keys() and ours, cell.name
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), cell.name
        assert (there / "predictions.jsonl").read_bytes() == (here / "predictions.jsonl").read_bytes(), cell.name


def stored(folder: Path) -> str:
    """The tiny model as a folder of weights: making a fresh one takes random numbers, reading this one none."""
    from luthier.run import Run, base
    from tinyrun import write_run

    base(Run.from_yaml(write_run(folder, model={"dropout": 0.1}))).save(folder / "base")
    return str(folder / "base")


@pytest.mark.parametrize(
    "fresh, together", [(False, 0), pytest.param(True, 0, marks=pytest.mark.slow), pytest.param(False, 1, marks=pytest.mark.slow)]
)
def test_a_cell_equals_the_same_run_alone_to_the_bit(tmp_path: Path, fresh: bool, together: int) -> None:
    """With dropout in the model and in a method, in turns or one after the other, the base read from a folder or made by each seed."""
    changes = {"model": {"dropout": 0.1} if fresh else stored(tmp_path), "training": {"steps": 4}, "data": {"held_out": 3}}
    path = write_grid(tmp_path, changes, seeds=[0, 1], together=together)
    found = compare(path)
    assert {method.name for method in found.methods} == set(METHODS)
    same_as_alone(path, tmp_path)
