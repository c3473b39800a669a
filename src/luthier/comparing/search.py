"""Search: each method tries settings on validation rows, all methods equally many, and its cells take what did best.

The rows are a part of the training rows (data.validation); the held-out rows are never looked at. Lists are gone through whole, or sampled
where there are more points than trials; a range from low to high is searched by optuna's tree of Parzen estimators, from trial to trial.
One seed cannot tell a good rate from one that was lucky: under search.seeds of the grid's seeds the mean decides.
"""

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from luthier.comparing.grid import SHARE, Cell, Grid, applies, built, searched
from luthier.report import FALLS, read_json
from luthier.run_file import Run
from luthier.training.folder import RESULT

Point = dict[str, Any]


class Search:
    """The trials of one method at one point of the grid, point by point, under the first seeds. cell: the one of the first seed."""

    def __init__(self, grid: Grid, cell: Cell, folder: Path):
        self.grid, self.cell, self.folder = grid, cell, folder
        self.axes = {key: values for key, values in searched(grid).items() if applies(key, grid.methods[cell.method])}
        self.on, self.share = grid.search.get("on", "loss"), float(grid.search.get("share", SHARE))
        self.ranges = any(isinstance(values, Mapping) for values in self.axes.values())
        self.points = [] if self.ranges else listed(self.axes, grid.search.get("trials"))
        self.seeds = seeds_of(grid)
        self.trials: list[dict[str, Any]] = []
        self.study = study(self.on) if self.ranges and self.axes else None

    @property
    def count(self) -> int:
        """How many trials there are in all; one is none, for there is nothing to choose."""
        points = int(self.grid.search["trials"]) if self.study is not None else len(self.points) if len(self.points) > 1 else 0
        return points * len(self.seeds)

    def next(self) -> list[tuple[str, Run]]:
        """Trials that can be run now, by name: of lists all, of ranges one, for the next follows from it; none when they are over."""
        if len(self.trials) >= self.count:
            return []
        points = self.points
        if self.study is not None:
            if tried := len(self.trials) // len(self.seeds):  # all of them are over
                tell(self.study, tried - 1, self.figure(tried - 1))
            points = [ask(self.study, self.axes)]
        found = []
        for point, seed in product(points, self.seeds):
            number, beside = len(self.trials) // len(self.seeds), "" if seed == self.cell.seed else f"-seed{seed}"
            name = f"{self.cell.name}-trial{number}{beside}"  # so that seeds can be added to a search that is done
            self.trials.append({"point": point, "seed": seed, "loss": None, "folder": f"trials/{name}"})
            settings = {"output": str(self.folder / "trials" / name), "data.validation": self.share, "seed": seed}
            found.append((name, built(self.cell.document, point | settings)))
        return found

    def told(self, name: str, error: str | None) -> None:
        """A trial is over."""
        trial = next(each for each in self.trials if each["folder"] == f"trials/{name}")
        figures = read_json(self.folder / "trials" / name / RESULT, {}).get("after") or {}
        trial["loss"] = figures.get("loss") if error is None else None
        if self.on != "loss":
            trial[self.on] = figures.get(self.on) if error is None else None
        if error is not None:
            trial["error"] = error

    def figure(self, number: int) -> float | None:
        """What the trials of a point score on average; None where one of them failed or is not over."""
        found = [trial.get(self.on) for trial in self.trials[number * len(self.seeds) : (number + 1) * len(self.seeds)]]
        good = [value for value in found if isinstance(value, int | float) and math.isfinite(value)]
        return sum(good) / len(good) if good and len(good) == len(found) else None

    @property
    def chosen(self) -> Point | None:
        """The best point; the first of equals; the only one where there is no choice. None where every trial failed."""
        if self.study is None and not self.count:
            return self.points[0] if self.points else {}
        sign = 1 if self.on in FALLS else -1
        figures = [(number, self.figure(number)) for number in range(len(self.trials) // len(self.seeds))]
        done = [(sign * value, number) for number, value in figures if value is not None]
        return self.trials[min(done)[1] * len(self.seeds)]["point"] if done else None


def seeds_of(grid: Grid) -> tuple[int, ...]:
    """Those that a point is tried under."""
    return tuple(grid.seeds[: grid.search.get("seeds", 1)])


def listed(axes: Mapping[str, Sequence[Any]], trials: int | None) -> list[Point]:
    """Every point, or as many as there are trials: the same ones for every method that has the same axes."""
    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())] if axes else []
    if trials is None or trials >= len(points):
        return points
    chosen = sorted(random.Random(json.dumps(list(axes))).sample(range(len(points)), trials))
    return [points[i] for i in chosen]


def check_optuna(grid: Grid) -> None:
    """ValueError where a range is to be searched and optuna is not there."""
    if any(isinstance(values, Mapping) for values in searched(grid).values()):
        try:
            import optuna  # noqa: F401
        except ImportError:
            raise ValueError("a search from low to high needs the package optuna; pip install 'luthier[search]', or give lists") from None


def study(on: str) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="minimize" if on in FALLS else "maximize", sampler=optuna.samplers.TPESampler(seed=0))


def ask(study: Any, axes: Mapping[str, Any]) -> Point:
    trial = study.ask()
    return {key: suggested(trial, key, values) for key, values in axes.items()}


def suggested(trial: Any, key: str, values: Any) -> Any:
    if not isinstance(values, Mapping):
        return trial.suggest_categorical(key, list(values))
    low, high, log = values["low"], values["high"], bool(values.get("log"))
    whole = isinstance(low, int) and isinstance(high, int)
    return trial.suggest_int(key, low, high, log=log) if whole else trial.suggest_float(key, low, high, log=log)


def tell(study: Any, number: int, value: float | None) -> None:
    import optuna

    good = value is not None and math.isfinite(value)
    study.tell(number, value if good else None, state=None if good else optuna.trial.TrialState.FAIL)


def budget(searches: Iterable[Search], grid: Grid) -> dict[str, Any] | None:
    """What grid.json says of a search."""
    counts = {search.cell.name.rpartition("-seed")[0]: search.count for search in searches}
    if not counts:
        return None
    share = float(grid.search.get("share", SHARE))
    return {"trials": counts, "on": grid.search.get("on", "loss"), "share": share, "seeds": list(seeds_of(grid))}
