"""Two methods on the same held-out rows: which rows those are, what each run scores on every one, and the paired bootstrap of it."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from luthier import lookup
from luthier.comparing.read import Outcome
from luthier.comparing.statistics import FEWEST, Against, drawn_against, mean_against

CLOSE = 2e-3  # as far as the figure worked out again from the rows may lie from the reported one, of the figure or of 1


class Measure(Protocol):
    of: ClassVar[str]

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]: ...


@runtime_checkable
class Counted(Protocol):
    """A measure of a corpus whose figures follow from sums over its rows: BLEU, chrF, F1 of entities."""

    def counts(self, predictions: Sequence[Any], references: Sequence[Any]) -> list[list[int]]: ...

    def figures(self, totals: Sequence[float]) -> dict[str, float]: ...


@dataclass(frozen=True)
class Scored:
    """A run's held-out rows. values: one figure a row, where their mean is the run's figure; else the parts that give it."""

    split: str  # the same for runs that held out the same rows
    rows: int
    values: tuple[float, ...] | None = None
    weights: tuple[float, ...] | None = None  # labels of each row, where the figure is the mean over labels
    pairs: tuple[tuple[Any, Any], ...] = ()  # predicted, right
    measure: Measure | None = None
    metric: str = ""
    counts: tuple[tuple[int, ...], ...] = ()  # column by column, of a measure that is Counted

    def figure(self, rows: Sequence[int]) -> float:
        """The figure on these rows, some of them several times; NaN where it is undefined."""
        if self.values is not None and self.weights is not None:
            weight = [self.weights[i] for i in rows]
            return math.fsum(self.values[i] * w for i, w in zip(rows, weight, strict=True)) / (math.fsum(weight) or math.nan)
        if self.values is not None:
            return math.fsum(self.values[i] for i in rows) / len(rows)
        if isinstance(self.measure, Counted):
            return self.measure.figures([sum(map(column.__getitem__, rows)) for column in self.counts])[self.metric]
        assert self.measure is not None
        predicted, right = zip(*(self.pairs[i] for i in rows), strict=True)
        return self.measure.score(predicted, right)[self.metric]


def against(first: Sequence[Scored | str], other: Sequence[Scored | str]) -> Against | str:
    """The bootstrap of `other`'s mean figure over its seeds minus that of `first`; or why there is none, in words."""
    for found in [*first, *other]:
        if isinstance(found, str):
            return found
    ours, theirs = by_split(first), by_split(other)
    blocks = [(ours[split], theirs[split], ours[split][0].rows) for split in ours if split in theirs]
    if not blocks:
        return "the held-out rows are not the same"
    rows = sum(rows for *_, rows in blocks)
    if rows < FEWEST:
        return f"fewer than {FEWEST} held-out rows"
    if all(found.values is not None and found.weights is None for a, b, _ in blocks for found in a + b):
        return mean_against([y - x for a, b, _ in blocks for x, y in zip(means(a), means(b), strict=True)])
    return drawn_against(Difference(blocks), rows)


def by_split(side: Sequence[Any]) -> dict[str, list[Scored]]:
    return {split: [found for found in side if found.split == split] for split in dict.fromkeys(found.split for found in side)}


@dataclass(frozen=True)
class Difference:
    """Of two methods' mean figures, on drawn rows; rows of the blocks are numbered through."""

    blocks: Sequence[tuple[Sequence[Scored], Sequence[Scored], int]]

    def __call__(self, drawn: Sequence[int]) -> float:
        found, start = [], 0
        for a, b, rows in self.blocks:
            here = [i - start for i in drawn if start <= i < start + rows] if len(self.blocks) > 1 else drawn
            found.append(sum(s.figure(here) for s in b) / len(b) - sum(s.figure(here) for s in a) / len(a) if here else math.nan)
            start += rows
        return sum(found) / len(found)


def means(side: Sequence[Scored]) -> list[float]:
    """Of each row, over the runs."""
    return [sum(row) / len(side) for row in zip(*(found.values or () for found in side), strict=True)]


def scored(cell: Outcome, metric: str) -> Scored | str:
    """A run's rows under a metric, or why they cannot be had."""
    try:
        lines = cell.predictions()
    except ValueError as error:
        return str(error)
    if not lines:
        return "no predictions.jsonl: the run is older than this comparison, or held nothing out"
    reported = cell.figures.get(metric)
    if reported is None:
        return f"{cell.folder.name} has no {metric}"
    split = held_out(cell, len(lines))
    found = by_loss(lines, split) if metric == "loss" else by_measure(cell, lines, split, metric)
    if isinstance(found, Scored) and abs(found.figure(range(found.rows)) - reported) > CLOSE * max(1.0, abs(reported)):
        return f"predictions.jsonl of {cell.folder.name} does not give the reported {metric}"
    return found


def by_loss(lines: Sequence[dict[str, Any]], split: str) -> Scored | str:
    values = tuple(line.get("loss") for line in lines)
    if not all(isinstance(value, int | float) for value in values):
        return "predictions.jsonl has no losses"
    weights = tuple(line.get("labels", 1) for line in lines)
    return Scored(split, len(lines), values, weights if len(set(weights)) > 1 else None)  # type: ignore[arg-type]


def by_measure(cell: Outcome, lines: Sequence[dict[str, Any]], split: str, metric: str) -> Scored | str:
    """With the run's measure that makes the figure: row by row where the mean over rows is the figure."""
    try:
        made = measures(cell)
    except (ValueError, TypeError, KeyError, ImportError, OSError) as error:
        return f"the measures of {cell.folder.name} cannot be made: {error}"
    for measure in made:
        for pairs in pairings(lines, measure.of):
            found = by_row(measure, pairs, metric)
            if found is not None:
                if found:
                    return Scored(split, len(lines), found)
                counts = tuple(zip(*measure.counts(*zip(*pairs, strict=True)), strict=True)) if isinstance(measure, Counted) else ()
                return Scored(split, len(lines), None, None, pairs, measure, metric, counts)
    return f"{metric} cannot be worked out again from predictions.jsonl"


def pairings(lines: Sequence[dict[str, Any]], of: str) -> Iterator[tuple[tuple[Any, Any], ...]]:
    """What a measure may compare in predictions.jsonl, row by row; of likelihoods, the nats of a row and its labels."""
    if of == "likelihood":
        if all("loss" in line for line in lines):
            yield tuple((line["loss"] * line.get("labels", 1), (line.get("labels", 1), 0)) for line in lines)
        return
    for said, right in (("predicted", "label"), ("written", "reference")):
        if all(said in line and right in line for line in lines):
            yield tuple((hashable(line[said]), hashable(line[right])) for line in lines)


def by_row(measure: Measure, pairs: Sequence[tuple[Any, Any]], metric: str) -> tuple[float, ...] | None:
    """The figure of each row, where their mean is the figure of all; empty where it is not, None where the measure does not give it."""
    try:
        whole = measure.score(*zip(*pairs, strict=True)).get(metric)
        if whole is None:
            return None
        if isinstance(measure, Counted):
            return ()
        known = {pair: measure.score([pair[0]], [pair[1]])[metric] for pair in set(pairs)}  # labels repeat
    except (ValueError, TypeError, AttributeError, ZeroDivisionError):
        return None  # not a measure of such pairs
    values = tuple(known[pair] for pair in pairs)
    return values if abs(math.fsum(values) / len(values) - whole) < 1e-9 else ()


def measures(cell: Outcome) -> list[Measure]:
    """The measures of a run's `evaluation`, made again."""
    found = []
    for folder in cell.settings.get("plugins") or ():
        lookup.add_folder(folder)
    for section in cell.settings.get("evaluation") or ():
        values = dict(section)
        found.append(lookup.lookup("evaluation", values.pop("kind"))(**values))
    return found


def held_out(cell: Outcome, rows: int) -> str:
    """What decides which rows a run held out: the files, and where a share or a number of rows is drawn from them, the seed."""
    data, hashes = cell.settings.get("data") or {}, cell.manifest.get("data") or {}
    if isinstance(data.get("held_out"), str):
        return json.dumps([hashes.get(data["held_out"], data["held_out"]), rows])
    return json.dumps([sorted(hashes.values()) or data.get("path"), data.get("held_out"), cell.seed, rows], default=str)


def hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
