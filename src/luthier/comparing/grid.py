"""A grid: methods x seeds x further axes over one run file, and the runs it is made of. Importing this imports neither torch nor pydantic.

    grid = Grid.from_yaml("grid.yaml", ["seeds=[0, 1]"])

A cell is a run of its own: the run file, then `set`, then the cell's place on the axes of `vary`, then the method as its tuning with the
method's own `set`, then the seed. An axis `tuning.rank` is for the methods that have a rank; the others have one place on it. Of a method
that is several it reaches every member that has a rank; `tuning.0.rank` names one of them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import config as yaml
from luthier.comparing.read import label
from luthier.config import Document
from luthier.declaration import read
from luthier.lookup import find, shelf_of
from luthier.schema import Address
from luthier.tuning._composition import NODES

if TYPE_CHECKING:
    from luthier.run_file import Run

SHARE = 0.1  # of the training rows, for a search


@dataclass(frozen=True)
class Grid:
    """A grid file. Keys of a run are written with dots: training.rate."""

    output: str  # the folder for everything the grid writes
    methods: dict[str, Any]  # name -> a tuning section or a list of them; a section may `set:` run keys for this method alone
    run: str | dict[str, Any]  # a run file, relative to this one; or its sections
    set: dict[str, Any] = field(default_factory=dict)  # run keys on top of it
    seeds: tuple[int, ...] = (0,)
    vary: dict[str, Any] = field(default_factory=dict)  # further axes: a run's key -> its values
    search: dict[str, Any] = field(default_factory=dict)  # a run's key -> values, or {low, high, log}; trials, on, share, seeds
    metric: str = ""  # what the table is sorted and tested by; the first measure, else loss
    workers: int = 1  # processes
    ray: bool = False  # cells as tasks of a Ray cluster (pip install luthier[ray])
    together: int = 0  # runs that take turns in a process; 0: as many as its memory holds
    latency: bool = True  # seconds that a token takes, measured after each run

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Grid":
        """Reads a grid file, with `a.b=c` set on top. ValueError holds every mistake of it and of its runs, each with its line."""
        from luthier.comparing.grid_file import read_grid  # the reader knows Grid

        return read_grid(path, overrides)[0]


@dataclass(frozen=True)
class Cell:
    """One run of a grid. point: its values on the axes of `vary`; document: the run as if it were a file."""

    name: str
    method: str
    seed: int
    point: Mapping[str, Any]
    document: Document = field(repr=False)

    def run(self, output: Path, chosen: Mapping[str, Any] | None = None) -> "Run":
        """The run, with what a search has chosen for it. ValueError where a value does not do."""
        return built(self.document, {**(chosen or {}), "output": str(output / "cells" / self.name)})


# What a grid's cells are


def base_of(grid: Grid, document: Document) -> Document:
    """The run without a method: of its own file, or of the section in the grid."""
    if isinstance(grid.run, str):
        base = yaml.read_yaml(grid.run)
    else:
        places: dict[Address, int | str] = {at[1:]: document.where(at) for at in document.places if at[:1] == ("run",)}
        base = Document(document.file, deepcopy(grid.run), places)
    for key, value in grid.set.items():
        base = changed(base, {key: value}, document.where(("set", key)))
    return base


def cells_of(grid: Grid, document: Document, base: Document) -> Iterator[Cell]:
    """Seed by seed, in the order of the methods."""
    for name, seed, method, point in named(grid):
        made = changed(with_method(grid, document, base, method, point), {"seed": seed}, document.where(("seeds",)))
        yield Cell(name, method, seed, point, made)


def named(grid: Grid) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """(name, seed, method, point) of each cell."""
    for seed in grid.seeds:
        for method, point in places(grid):
            axes = [f"{key.rpartition('.')[2]}{label(value, grid.vary[key])}" for key, value in point.items()]
            yield re.sub(r"[^\w.+-]+", "_", "-".join([method, *axes, f"seed{seed}"])), seed, method, point


def places(grid: Grid) -> Iterator[tuple[str, dict[str, Any]]]:
    """(method, its values on the axes) of one seed."""
    for method, section in grid.methods.items():
        axes = {key: values for key, values in grid.vary.items() if applies(key, section)}
        for values in product(*axes.values()):
            yield method, dict(zip(axes, values, strict=True))


def with_method(grid: Grid, document: Document, base: Document, method: str, point: Mapping[str, Any]) -> Document:
    section = grid.methods[method]
    own = own_of(section)
    section = {key: value for key, value in section.items() if key != "set"} if isinstance(section, Mapping) else section
    at = ("methods", method)
    document_of = changed(base, {"tuning": in_full(section)}, document.where(at))
    inner = {("tuning", *rest[2:]): document.where(rest) for rest in document.places if rest[:2] == at and len(rest) > 2}
    document_of.places |= inner
    for key, value in own.items():
        document_of = changed(document_of, {key: value}, document.where((*at, "set", key)))
    for key, value in point.items():
        document_of = changed(document_of, {key: value}, document.where(("vary", key)))
    return document_of


def own_of(section: Any) -> Any:
    """The run keys of one method alone."""
    return section.get("set") or {} if isinstance(section, Mapping) else {}


def in_full(section: Any) -> Any:
    """A copy of a method's section, each member that is a name as the section it stands for, so that settings can be put there."""
    if isinstance(section, str):
        return {"kind": section}
    if isinstance(section, list | tuple):
        return [in_full(member) for member in section]
    made = deepcopy(section)
    return {**made, node: in_full(made[node])} if isinstance(made, Mapping) and (node := node_of(made)) else made


def kind_of(section: str | Mapping[str, Any]) -> str:
    """The plug-in that a section names: lora, or {kind: lora, ...}."""
    return section if isinstance(section, str) else str(section.get("kind", ""))


def node_of(section: Mapping[str, Any]) -> str:
    """The key of a composition's members; "" of one method."""
    return "" if "kind" in section else next((key for key in section if key in NODES), "")


def applies(key: str, section: Any) -> bool:
    """Whether a method has this setting; settings that are not the tuning's are everyone's."""
    first, *rest = key.split(".")
    return first != "tuning" or bool(reached(section, rest))


def reached(section: Any, keys: Sequence[str]) -> list[list[str]]:
    """Where in a method's section a setting stands: of a composition in every member that has it, or in the one whose place is named."""
    if not keys:
        return []
    first, *rest = keys
    if isinstance(section, list | tuple):
        if not first.isdigit():
            return [[str(i), *at] for i, member in enumerate(section) for at in reached(member, keys)]
        return [[first, *at] for at in reached(section[int(first)], rest)] if int(first) < len(section) else []
    if isinstance(section, Mapping) and (node := node_of(section)):
        if first == node:
            return [[node, *at] for at in reached(section[node], rest)]
        own = [[*keys]] if first in [each.name for each in fields(NODES[node])] else []
        return own + [[node, *at] for at in reached(section[node], keys)]
    kind = kind_of(section) if isinstance(section, str | Mapping) else ""
    try:
        known = read(find(shelf_of("tuning", kind), kind))
    except (ValueError, StopIteration):
        return [[*keys]]  # said where the method is checked
    return [[*keys]] if first in [each.name for each in known.fields] else []


def changed(document: Document, values: Mapping[str, Any], place: str) -> Document:
    """A copy with these keys set, each standing at `place`."""
    made = Document(document.file, deepcopy(document.values), dict(document.places))
    for key, value in values.items():
        first, *rest = key.split(".")
        found = reached(made.values.get("tuning"), rest) if first == "tuning" and rest else []
        for at in found or [rest]:
            yaml.put(made, [first, *at], value, place or f"{key}={value}")
    return made


def built(document: Document, values: Mapping[str, Any]) -> "Run":
    """The run of a document with these keys set."""
    from luthier.run_file import Run

    document = changed(document, values, "")
    return yaml.build(Run, document.values, document.where)


def metric_of(grid: Grid, run: "Run") -> str:
    """What the table is sorted by."""
    if grid.metric or not run.evaluation:
        return grid.metric or "loss"
    first = run.evaluation[0]
    return kind_of(first) if isinstance(first, str | Mapping) else type(first).__module__.rpartition(".")[2]


def searched(grid: Grid) -> dict[str, Any]:
    """The axes of the search."""
    return {key: value for key, value in grid.search.items() if key not in ("trials", "on", "share", "seeds")}
