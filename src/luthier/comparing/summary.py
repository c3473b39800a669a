"""Cells to methods: their figures over seeds, what they cost, and how they stand against the first one."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from luthier.comparing.pairs import Scored, against, scored
from luthier.comparing.read import Found, Outcome, brief
from luthier.comparing.statistics import Against, Spread, spread
from luthier.report import FALLS, number


@dataclass(frozen=True)
class Method:
    """One method, its seeds together. What a run does not tell is None."""

    name: str
    cells: tuple[Outcome, ...]
    figures: Mapping[str, Spread]  # on the held-out rows; "loss" is one of them
    trained: int | None  # parameters
    parameters: int | None
    memory_bytes: int | None  # the highest peak of its runs
    tokens_per_s: float | None
    artefact_bytes: int | None
    latency: Mapping[str, float] = field(default_factory=dict)  # seconds a token: base, unmerged, merged
    versus: str = ""  # the first method that was measured on the same rows; of that one itself ""
    against: Against | None = None
    reason: str = ""  # why there is no `against`

    @property
    def share(self) -> float | None:
        return self.trained / self.parameters if self.trained is not None and self.parameters else None

    def added(self, how: str) -> float | None:
        """Seconds a token more than the base, `unmerged` or `merged`; None where it was not measured or cannot be merged."""
        both = self.latency.get(how), self.latency.get("base")
        return both[0] - both[1] if both[0] is not None and both[1] is not None else None

    @property
    def chosen(self) -> Mapping[str, Any] | None:
        return next((cell.chosen for cell in self.cells if cell.chosen), None)


@dataclass(frozen=True)
class Comparison:
    """What is shown. methods: task by task, the best first, by the metric; firsts: of each task the one that its others are tested against."""

    methods: tuple[Method, ...]
    metric: str | None
    firsts: tuple[str, ...]
    failed: tuple[Outcome, ...] = ()
    waiting: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    budget: Any = None

    @property
    def first(self) -> str:
        """The one that all others are tested against; "" where there are several."""
        return self.firsts[0] if len(self.firsts) == 1 else ""

    @property
    def rises(self) -> bool:
        """Whether a higher figure is the better one."""
        return self.metric not in FALLS


def compare(found: Found, metric: str | None = None) -> Comparison:
    """The methods of these cells. metric: a figure's name; left out: the grid's, or the first that all runs have beside their loss, or that.

    ValueError where no run has the metric that was asked for.
    """
    groups: dict[str, list[Outcome]] = {}
    for cell in found.cells:
        groups.setdefault(cell.name, []).append(cell)
    done = [cell for cell in found.cells if cell.error is None]
    metric, notes = choose(done, metric or found.metric, asked=metric is not None)
    rows = {id(cell): scored(cell, metric) for cell in done} if metric and len(groups) > 1 else {}
    methods = [method(name, [cell for cell in cells if cell.error is None]) for name, cells in groups.items()]
    several = len(tasks(done)) > 1
    task = {each.name: frozenset(tasks(each.cells) if several else ()) for each in methods}
    firsts: dict[frozenset[tuple[str, str]], Method] = {}
    for each in methods:
        if each.cells or not several:  # of a single task also a first one that has failed
            firsts.setdefault(task[each.name], each)
    methods = [tested(each, firsts[task[each.name]], rows) for each in methods if each.cells]
    reasons = dict.fromkeys((each.versus, each.reason) for each in methods if each.reason)
    notes += [f"No test against {first}: {reason}." for first, reason in reasons]
    if several:
        notes.insert(0, differ(done))
    if metric:
        sign = 1 if metric in FALLS else -1
        methods.sort(key=lambda each: sign * each.figures[metric].mean if metric in each.figures else math.inf)
    methods.sort(key=lambda each: list(firsts).index(task[each.name]))
    failed = tuple(cell for cell in found.cells if cell.error is not None)
    names = tuple(each.name for each in firsts.values())
    return Comparison(tuple(methods), metric, names, failed, found.waiting, tuple(notes), found.budget)


def choose(cells: Sequence[Outcome], metric: str | None, asked: bool) -> tuple[str | None, list[str]]:
    """The figure to compare by, and what is to be said about it."""
    figures = [cell.figures for cell in cells]
    known = list(dict.fromkeys(name for each in figures for name in each))
    if metric is not None and metric not in known:
        if asked:
            there = f"; there are {', '.join(known)}" if known else "; they held nothing out"
            raise ValueError(f"none of the runs has a figure called {metric!r}{there}")
        metric = None
    if metric is None:
        common = [name for name in known if all(name in each for each in figures)]
        metric = next((name for name in common if name != "loss"), next(iter(common), None))
    if metric is None and cells:
        without = [cell.folder.name for cell in cells if not cell.figures]
        why = f"nothing is held out in {', '.join(without[:3])}" if without else "each run has others"
        return None, [f"No figure is common to all runs ({why}): only sizes, memory and speed are compared."]
    left_out = [cell.folder.name for cell in cells if metric not in cell.figures]
    return metric, [f"Without {metric}: {', '.join(left_out)}."] if left_out else []


def tasks(cells: Sequence[Outcome]) -> set[tuple[str, str]]:
    """(objective, data) that the runs were measured on; rows drawn anew for each seed are of one task."""
    return {(brief(cell.settings.get("objective")), source(cell)) for cell in cells if cell.settings}


def source(cell: Outcome) -> str:
    data = cell.settings.get("data") or {}
    kept = data.get("held_out")
    paths = [kept] if isinstance(kept, str) else [each.get("path") if isinstance(each, dict) else each for each in listed(data.get("path"))]
    hashes = cell.manifest.get("data") or {}
    return " ".join(sorted(str(hashes.get(path, path)) for path in paths))


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def differ(cells: Sequence[Outcome]) -> str:
    """The sentence about runs of several tasks."""
    objectives = sorted({brief(cell.settings.get("objective")) for cell in cells if cell.settings})
    what = f"different objectives ({', '.join(objectives)})" if len(objectives) > 1 else "different held-out data"
    return f"These runs have {what}: only figures of the same task measure the same thing; sizes, memory and speed can be compared."


def method(name: str, cells: Sequence[Outcome]) -> Method:
    kinds = list(dict.fromkeys(kind for cell in cells for kind in cell.figures))
    return Method(
        name,
        tuple(cells),
        {kind: spread([cell.figures[kind] for cell in cells if kind in cell.figures]) for kind in kinds},
        trained=whole(largest(cells, lambda cell: cell.result.get("trainable"))),
        parameters=whole(largest(cells, lambda cell: cell.result.get("parameters"))),
        memory_bytes=whole(largest(cells, lambda cell: cell.result.get("memory_bytes"))),
        tokens_per_s=average([speed(cell) for cell in cells]),
        artefact_bytes=whole(largest(cells, artefact_bytes)),
        latency=latency(cells),
    )


def tested(method: Method, first: Method, rows: Mapping[int, Scored | str]) -> Method:
    if method.name == first.name:
        return method
    if not rows:
        return replace(method, versus=first.name)
    if not first.cells:
        found: Against | str = f"{first.name} has no finished run"
    else:
        found = against([rows[id(cell)] for cell in first.cells], [rows[id(cell)] for cell in method.cells])
    told: dict[str, Any] = {"reason": found} if isinstance(found, str) else {"against": found}
    return replace(method, versus=first.name, **told)


def largest(cells: Sequence[Outcome], of: Callable[[Outcome], Any]) -> float | None:
    return max((value for cell in cells if (value := number(of(cell))) is not None), default=None)


def whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def average(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def speed(cell: Outcome) -> float | None:
    """Tokens trained on in a second, evaluations not counted."""
    tokens, time_s = number(cell.result.get("tokens")), number(cell.result.get("time_s"))
    return tokens / time_s if tokens and time_s else None


def artefact_bytes(cell: Outcome) -> float | None:
    """Of adapter/ or model/ on disk; counted here for runs that did not write it down."""
    if (written := number(cell.result.get("artefact_bytes"))) is not None:
        return written
    folder = cell.folder / str(cell.result.get("path") or "adapter")
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else None


def latency(cells: Sequence[Outcome]) -> dict[str, float]:
    """Medians over the runs; what is added to the base is compared within each run, which measured both by turns."""
    told = [cell.result["latency"] for cell in cells if isinstance(cell.result.get("latency"), dict)]
    told = [each for each in told if number(each.get("base")) is not None]
    if not told:
        return {}
    found = {"base": median([each["base"] for each in told])}
    for how in ("unmerged", "merged"):
        added = [each[how] - each["base"] for each in told if number(each.get(how)) is not None]
        found |= {how: found["base"] + median(added)} if added else {}
    return found
