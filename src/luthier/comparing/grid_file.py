"""A grid's file, read strictly: every mistake of it and of its runs at once, each with its line. Imports neither torch nor pydantic."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier import config as yaml
from luthier import lookup
from luthier.comparing.grid import SHARE, Cell, Grid, applies, base_of, cells_of, changed, named, node_of, own_of, searched, with_method
from luthier.config import Document
from luthier.declaration import read
from luthier.lookup import suggest
from luthier.schema import Address, Mistake, mistakes, show, spell

GRID, RUN = Path(__file__).with_name("grid.py"), Path(__file__).parents[1] / "run_file.py"
OWN = ("seed", "output", "tuning")  # what a grid itself sets in a run
SECTIONS = ("set", "vary", "search")  # whose keys are a run's


def read_grid(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Grid, list[Cell]]:
    """A grid file and its cells. ValueError holds every mistake."""
    return parts(yaml.read_yaml(path, overrides), Path(path).parent)


def made(grid: Grid) -> list[Cell]:
    """The cells of a grid written in Python; paths are relative to the working folder."""
    values = {name: value for name, value in vars(grid).items() if value or name in ("ray", "latency")}
    return parts(Document("the grid", yaml.plain(values)), Path())[1]


def parts(document: Document, beside: Path) -> tuple[Grid, list[Cell]]:
    for section in SECTIONS:
        dotted(document, (section,))
    for method in document.values.get("methods") or ():
        dotted(document, ("methods", method, "set"))
    fields = [each.name for each in read(GRID, "Grid").fields]
    found = list(mistakes(document.values, GRID, "Grid"))
    if any(each.address[:1] not in [(key,) for key in document.values if key not in fields] for each in found):
        refuse(said(document, found))  # what is of the wrong kind cannot be looked into
    grid = grid_of({key: value for key, value in document.values.items() if key in fields})
    if isinstance(grid.run, str):
        grid = replace(grid, run=str(beside / Path(grid.run).expanduser()))
    base = base_of(grid, document)
    for folder in base.values.get("plugins") or ():
        lookup.add_folder(str(folder))
    own = list(own_mistakes(grid))
    told = said(document, [*found, *own, *metric_mistakes(grid, base), *([] if own else twice(grid))])
    for run in to_check(grid, document, base):
        told |= said(run, [*mistakes(run.values, RUN, "Run"), *missing(run)])
    refuse(told)
    return grid, list(cells_of(grid, document, base))


def dotted(document: Document, at: Address) -> None:
    """Keys of a run as they are written in full, {training: {rate: 1}} as {training.rate: 1}, within a section of the document."""
    *above, name = at
    spot = document.values
    for key in above:
        spot = spot.get(key) if isinstance(spot, Mapping) else None
    if not isinstance(spot, dict) or not isinstance(spot.get(name), Mapping):
        return
    found = {".".join(map(str, inner)): (value, (*at, *inner)) for inner, value in leaves(spot[name])}
    document.places |= {(*at, key): document.place(place) for key, (_, place) in found.items()}
    spot[name] = {key: value for key, (value, _) in found.items()}


def leaves(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value and not {"low", "high"} & set(value):
            yield from (((key, *inner), leaf) for inner, leaf in leaves(value))
        else:
            yield (key,), value


def grid_of(values: Mapping[str, Any]) -> Grid:
    """Numbers may be written as text, as in run files."""
    whole = {name: int(float(values[name])) for name in ("workers", "together") if name in values}
    seeds = {"seeds": tuple(int(float(seed)) for seed in values["seeds"])} if "seeds" in values else {}
    return Grid(**{**values, **whole, **seeds})


# What is refused


def own_mistakes(grid: Grid) -> Iterator[Mistake]:
    for name, section in grid.methods.items():
        if not re.fullmatch(r"[\w.+-]+", name):
            yield Mistake(("methods", name), f"a method cannot be called {name!r}: its name is a folder's, so letters, digits and _ . + -")
        if isinstance(section, Mapping):
            yield from keys_mistakes(("methods", name, "set"), own_of(section), grid)
        elif not isinstance(section, str | list | tuple):
            yield Mistake(("methods", name), f"methods.{name} must be a tuning section, its name or a list of them, got {show(section)}")
    if not grid.methods:
        yield Mistake(("methods",), "methods is empty; name one at least")
    if not grid.seeds or len(set(grid.seeds)) < len(grid.seeds):
        yield Mistake(("seeds",), f"seeds={list(grid.seeds)}: give one at least, and each once")
    yield from keys_mistakes(("set",), grid.set, grid)
    yield from axes_mistakes(grid)
    yield from search_mistakes(grid)
    if grid.workers < 1 or grid.together < 0:
        yield Mistake(("workers",), f"workers={grid.workers} must be above 0, and together={grid.together} not below")


def keys_mistakes(at: Address, values: Any, grid: Grid) -> Iterator[Mistake]:
    if not isinstance(values, Mapping):
        yield Mistake(at, f"{spell(at)} must be a section (key: value), got {show(values)}")
        return
    for key in values:
        if key.partition(".")[0] in OWN and (key.partition(".")[0] != "tuning" or at == ("set",)):
            yield Mistake((*at, key), f"{key} in {spell(at)}: the grid sets it itself, from methods, seeds and output")
        for axes, where in ((grid.vary, "vary"), (grid.search, "search")):
            if key in axes:
                yield Mistake((*at, key), f"{key} stands in {spell(at)} and in {where}; leave one out")


def axes_mistakes(grid: Grid) -> Iterator[Mistake]:
    for where, axes in (("vary", grid.vary), ("search", searched(grid))):
        for key, values in axes.items():
            at = (where, key)
            span = where == "search" and isinstance(values, Mapping)
            if key.partition(".")[0] in ("seed", "output") or key == "tuning":
                yield Mistake(at, f"{spell(at)}: the grid sets {key} itself, from methods, seeds and output")
            elif span and (set(values) - {"low", "high", "log"} or not numbers(values)):
                yield Mistake(at, f"{spell(at)} must be a list of values or {{low: 1e-4, high: 1e-2, log: true}}, got {dict(values)}")
            elif not span and (not isinstance(values, list | tuple) or not values):
                yield Mistake(at, f"{spell(at)} must be a list of values, got {show(values)}")
            elif not span and any(value in list(values)[:i] for i, value in enumerate(values)):
                yield Mistake(at, f"{spell(at)} has a value twice: {list(values)}")
            elif not any(applies(key, section) for section in grid.methods.values()):
                told = "; of a method that is several it reaches every member that has it, and tuning.0.rank would be the first one's rank"
                several = any(
                    isinstance(each, list | tuple) or (isinstance(each, Mapping) and node_of(each)) for each in grid.methods.values()
                )
                yield Mistake(at, f"{spell(at)}: no method has the setting {key}{told if several else ''}")
            elif where == "search" and key in grid.vary:
                yield Mistake(at, f"{key} stands in vary and in search; leave one out")


def numbers(span: Mapping[str, Any]) -> bool:
    ends = [span.get("low"), span.get("high")]
    found = [end for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
    return len(found) == 2 and found[0] < found[1]


def search_mistakes(grid: Grid) -> Iterator[Mistake]:
    if not grid.search:
        return
    trials, share, axes = grid.search.get("trials"), grid.search.get("share", SHARE), searched(grid)
    if not axes:
        yield Mistake(("search",), "search names no setting; write for example training.rate: [1e-4, 1e-3]")
    if trials is not None and (not isinstance(trials, int) or isinstance(trials, bool) or trials < 1):
        yield Mistake(("search", "trials"), f"search.trials must be a whole number above 0, got {show(trials)}")
    if trials is None and any(isinstance(values, Mapping) for values in axes.values()):
        yield Mistake(("search",), "search has a range from low to high, so it needs trials: how many values each method may try")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        yield Mistake(("search", "share"), f"search.share={share}: a share of the training rows, between 0 and 1")
    seeds = grid.search.get("seeds", 1)
    if not isinstance(seeds, int) or isinstance(seeds, bool) or not 1 <= seeds <= len(grid.seeds):
        yield Mistake(
            ("search", "seeds"), f"search.seeds: how many of the grid's {len(grid.seeds)} seeds a point is tried under, not {show(seeds)}"
        )


def to_check(grid: Grid, document: Document, base: Document) -> Iterator[Document]:
    """Runs that show every mistake: each method with the first value of each axis, and with each other value."""
    axes = {("vary", key): values for key, values in grid.vary.items()} | {
        ("search", key): values for key, values in searched(grid).items()
    }
    lists = {at: list(values) for at, values in axes.items() if isinstance(values, list | tuple) and values}
    lists |= {at: [values["low"]] for at, values in axes.items() if isinstance(values, Mapping) and numbers(values)}
    for method, section in grid.methods.items():
        mine = {at: values for at, values in lists.items() if applies(at[1], section)}
        if not isinstance(section, str | Mapping | list | tuple) or not isinstance(own_of(section), Mapping):
            continue
        first = changed(with_method(grid, document, base, method, {}), {"output": grid.output, "seed": 0}, document.where(()))
        for at, values in mine.items():
            first = changed(first, {at[1]: values[0]}, document.where(at))
        yield first
        yield from (changed(first, {at[1]: value}, document.where(at)) for at, values in mine.items() for value in values[1:])


def missing(document: Document) -> Iterator[Mistake]:
    """Files that are not there."""
    data, model = document.values.get("data"), document.values.get("model")
    if isinstance(data, Mapping):
        paths = data.get("path")
        entries = {("data", "path"): paths} if isinstance(paths, str) else {("data", "path", i): p for i, p in enumerate(paths or ())}
        entries |= {("data", "held_out"): data["held_out"]} if isinstance(data.get("held_out"), str) else {}
        for at, entry in entries.items():
            path = entry.get("path") if isinstance(entry, Mapping) else entry
            if isinstance(path, str) and not Path(path).expanduser().exists():
                yield Mistake(at, f"{spell(at)}: {path} does not exist")
    if isinstance(model, str) and "://" not in model and not Path(model).expanduser().exists():
        yield Mistake(("model",), f"model: {model} does not exist")


def metric_mistakes(grid: Grid, base: Document) -> Iterator[Mistake]:
    """A metric is loss or a figure of a measure; some measures give figures of other names."""
    given = base.values.get("evaluation") or ()
    kinds = [str(each.get("kind")) if isinstance(each, Mapping) else str(each) for each in ([given] if isinstance(given, str) else given)]
    more = {"exact_match": ("answer_f1",), "perplexity": ("bits_per_byte",), "span_f1": ("span_precision", "span_recall")}
    known = ["loss", *kinds, *(name for kind in kinds for name in more.get(kind, ()))]
    for at, name in ((("metric",), grid.metric), (("search", "on"), grid.search.get("on", ""))):
        if name and name not in known and not any(str(name).startswith(kind) for kind in kinds):
            yield Mistake(at, f"{spell(at)}: the run measures no {name!r}{suggest(str(name), known)}")


def twice(grid: Grid) -> Iterator[Mistake]:
    cells = [(name, method) for name, _, method, _ in named(grid)]
    names = Counter(name for name, _ in cells)
    for name in [name for name, count in names.items() if count > 1]:
        methods = list(dict.fromkeys(method for other, method in cells if other == name))
        yield Mistake(
            ("methods", methods[-1]), f"two cells are called {name!r} ({', '.join(methods)}); give one of the methods another name"
        )


Told = dict[str, tuple[int, str]]  # a sentence with its place -> what it is sorted by


def said(document: Document, found: Iterable[Mistake]) -> Told:
    return {f"{document.where(each.address)}: {each.sentence}": by_file(document.where(each.address)) for each in found}


def by_file(place: str) -> tuple[int, str]:
    """File by file, line by line; overrides last."""
    file, _, line = place.rpartition(":")
    return (int(line), file) if line.isdigit() else (10**9, place)


def refuse(told: Told) -> None:
    yaml.refuse(sorted(told, key=lambda text: told[text]))
