"""Finished runs and grids, read from their folders; nothing here imports torch, numpy or pydantic.

A run's folder has config.yaml, manifest.json, result.json, metrics.jsonl and, where rows were held out, predictions.jsonl. A grid's has
grid.json, which names its cells, and their folders: {"cells": [{"method", "seed", "point", "folder", "state": "done" | "failed" |
"waiting", "error", "trials", "chosen"}, ...], "metric", "budget"}.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from luthier.report import number, read_json
from luthier.training.folder import flat
from luthier.training.log import read as read_lines

GRID = "grid.json"
# what two runs of one method may differ in
APART = (
    "seed", "output", "device", "samples", "plugins", "evaluation", "training.save_every", "training.keep", "training.log_every",
    "training.evaluate_every", "training.tensorboard",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One run: a method with one seed. point: its place on a grid's further axes; error: the sentence of one that failed."""

    method: str
    seed: int | None
    folder: Path
    point: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    trials: Sequence[Mapping[str, Any]] = ()  # of a search: {"point", "loss"}
    chosen: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # config.yaml
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)
    result: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The method and its point: lora rank=8."""
        point = " ".join(f"{key.rpartition('.')[2]}={word(value)}" for key, value in self.point.items())
        return f"{self.method} {point}".strip()

    @property
    def figures(self) -> dict[str, float]:
        """What the weights that the run handed over score on the held-out rows."""
        return {name: value for name, value in (self.result.get("after") or {}).items() if name != "step" and number(value) is not None}

    def metrics(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "metrics.jsonl")

    def predictions(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "predictions.jsonl")


@dataclass(frozen=True)
class Found:
    """What the folders hold: cells in the order given, the failed ones among them. waiting: cells of a grid that have not run yet."""

    cells: tuple[Outcome, ...]
    waiting: tuple[str, ...] = ()
    metric: str | None = None
    budget: Any = None


def read(folders: Sequence[str | Path]) -> Found:
    """Reads runs and grids. ValueError names every folder that is neither, each in one sentence."""
    runs, parts, grids, problems = [], [], [], []
    for folder in dict.fromkeys(Path(os.path.normpath(Path(folder).expanduser())) for folder in folders):
        try:
            if (folder / GRID).is_file():
                parts.append(read_grid(folder))
                grids.append((len(parts) - 1, folder.resolve().name))
            else:
                runs.append(read_run(folder))
                parts.append(Found((runs[-1],)))
        except (ValueError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))
    names = iter(name_runs(runs))
    twice = ran_twice([parts[i] for i, _ in grids])
    for i, name in grids:
        told = [replace(cell, method=f"{name}/{cell.method}") if cell.method in twice else cell for cell in parts[i].cells]
        parts[i] = replace(parts[i], cells=tuple(told))
    cells = [cell if cell.method else replace(cell, method=next(names)) for part in parts for cell in part.cells]
    return Found(
        tuple(cells),
        tuple(name for part in parts for name in part.waiting),
        next((part.metric for part in parts if part.metric), None),
        next((part.budget for part in parts if part.budget), None),
    )


def ran_twice(grids: Sequence[Found]) -> set[str]:
    """Methods of which two grids have the same cell: they are told apart, for a seed that ran twice is no second one."""
    counts = Counter((cell.name, cell.seed, cell.method) for grid in grids for cell in grid.cells)
    return {method for (_, _, method), count in counts.items() if count > 1}


def read_run(folder: Path) -> Outcome:
    """The run of a folder, not named yet."""
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give the folders of runs, or of a grid")
    if not (folder / "result.json").is_file():
        if (folder / "config.yaml").is_file():
            raise FileNotFoundError(f"{folder}: the run has not finished (no result.json); go on: luthier train RUN.yaml --resume auto")
        inside = sorted(path.parent.name for path in folder.glob("*/result.json"))
        hint = f"; runs lie in it: {', '.join(inside[:3])}{' ...' if len(inside) > 3 else ''}" if inside else ""
        raise FileNotFoundError(f"{folder} is neither a run (result.json) nor a grid ({GRID}){hint}")
    result, manifest = mapping(folder / "result.json"), mapping(folder / "manifest.json")
    if not isinstance(result.get("after") or {}, dict):
        raise ValueError(f'{folder / "result.json"}: "after" must hold figures by name, got {result["after"]!r}')
    settings = read_settings(folder / "config.yaml")
    seed = settings.get("seed")
    return Outcome("", seed if isinstance(seed, int) else None, folder, settings=settings, manifest=manifest, result=result)


def read_grid(folder: Path) -> Found:
    """The cells of a grid's folder; one that failed or whose folder is broken has its sentence."""
    grid = mapping(folder / GRID)
    listed = grid.get("cells")
    if not isinstance(listed, list) or not all(isinstance(each, dict) and {"method", "folder", "state"} <= each.keys() for each in listed):
        raise ValueError(f'{folder / GRID}: "cells" must be a list of {{"method", "seed", "folder", "state", ...}}')
    cells, waiting, axes = [], [], {}
    for each in listed:
        for key, value in (each.get("point") or {}).items():
            if value not in axes.setdefault(key, []):
                axes[key].append(value)
    for each in listed:
        point = {key: label(value, axes[key]) for key, value in (each.get("point") or {}).items()}
        names = {"method": str(each["method"]), "seed": each.get("seed"), "point": point}
        found = {"trials": each.get("trials") or (), "chosen": each.get("chosen")}
        path = next(
            (there for there in (folder / each["folder"], folder / "cells" / each["folder"]) if there.is_dir()), folder / each["folder"]
        )
        if each["state"] == "done":
            try:
                cells.append(replace(read_run(path), **names, **found))
            except (ValueError, OSError) as error:
                cells.append(Outcome(folder=path, error=str(error), **names, **found))
        elif each["state"] == "failed":
            cells.append(Outcome(folder=path, error=str(each.get("error") or "no reason was written down"), **names, **found))
        else:
            waiting.append(f"{Outcome(folder=path, **names).name}, seed {each.get('seed')}")
    metric = grid.get("metric")
    return Found(tuple(cells), tuple(waiting), str(metric) if metric else None, grid.get("budget"))


def mapping(path: Path) -> dict[str, Any]:
    found = read_json(path, {})
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold one object, got {type(found).__name__}")
    return found


def read_settings(path: Path) -> dict[str, Any]:
    """config.yaml as the run wrote it: read fast, for it was checked when it was written."""
    if not path.is_file():
        return {}
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = getattr(error, "problem_mark", None)
        raise ValueError(f"{path}{f':{line.line + 1}' if line else ''}: not YAML; the run's own file was changed") from None
    return found if isinstance(found, dict) else {}


def name_runs(runs: Sequence[Outcome]) -> list[str]:
    """A method's name for each run: its folder's; runs that differ in the seed alone share what their folders' names begin with."""
    groups = alike(runs)
    names = [stem([runs[i].folder.resolve().name for i in members]) or brief(runs[members[0]].settings.get("tuning")) for members in groups]
    found = [""] * len(runs)
    for name, members in zip(names, groups, strict=True):
        parent = runs[members[0]].folder.resolve().parent.name
        for i in members:
            found[i] = f"{parent}/{name}" if names.count(name) > 1 else name  # runs/x/lora and runs/y/lora
    return found


def alike(runs: Sequence[Outcome]) -> list[list[int]]:
    """Numbers of the runs with the same settings and different seeds."""
    groups: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        settings = {key: value for key, value in flat(run.settings).items() if key not in APART and not key.startswith("evaluation.")}
        key = json.dumps(settings, sort_keys=True, default=str)
        if not run.settings or run.seed in [runs[other].seed for other in groups.get(key, [])]:  # nothing to go by, or the same run twice
            key = f"{i} {key}"
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def stem(names: Sequence[str]) -> str:
    """lora-seed0 and lora-seed1 are lora."""
    return names[0] if len(names) == 1 else re.sub(r"[\W_]*(seed|s)?[\W_]*$", "", os.path.commonprefix(list(names)))


def brief(section: Any) -> str:
    return str(section.get("kind", "")) if isinstance(section, Mapping) else str(section or "")


def word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def label(value: Any, among: Sequence[Any]) -> str:
    """A value as a part of a name: of a path its stem, where that tells it from the others."""
    short = [Path(each).stem if isinstance(each, str) and "/" in each else word(each) for each in among]
    return short[list(among).index(value)] if len(set(short)) == len(short) else word(value)
