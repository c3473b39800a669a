"""Places of points, lines and labels for the drawings of a comparison's page; each drawing is a box of WIDTH x HEIGHT."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.comparing.read import Outcome
from luthier.comparing.summary import Comparison, Method
from luthier.comparing.table import cut
from luthier.report import count, points, smoothed, ticks

WIDTH, HEIGHT = 520.0, 330.0
LEFT, TOP, BOTTOM = 50.0, 12.0, 286.0
LETTER = 6.6  # width of a letter of a label, on average
MOST = 160  # points of a line
# outlines around the origin, about 10 wide; colours repeat after as many methods as there are colours, then with the next shape
SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z", "M-4.5 -4.5h9v9h-9z", "M0 -5.6L5.4 4.2H-5.4z", "M0 -6.2L5.4 0L0 6.2L-5.4 0z", "M0 5.6L5.4 -4.2H-5.4z",
    "M-1.9 -5.5h3.8v3.6h3.6v3.8h-3.6v3.6h-3.8v-3.6h-3.6v-3.8h3.6z", "M0 -5.8L5.5 -1.8L3.4 4.7H-3.4L-5.5 -1.8z", "M-3 -5.2H3L6 0L3 5.2H-3L-6 0z",
)  # fmt: skip
COLOURS = len(SHAPES)

Point = tuple[float, float]
Read = Callable[[Sequence[dict[str, Any]]], list[Point]]


@dataclass(frozen=True)
class Axis:
    """From a value to a place. kind: linear or log; on a logarithmic axis, what is not positive stands at its low end."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def place(self, value: float) -> float:
        low, high = self.scaled(self.low), self.scaled(self.high)
        return round(
            self.start + (self.stop - self.start) * (self.scaled(max(value, self.low) if self.log else value) - low) / (high - low), 1
        )

    def scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def marks(self, about: int) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high, about)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            found = [step * 10**power for power in powers for step in steps if self.low <= step * 10**power <= self.high]
            if len(found) >= 3:
                return found
        return found or [self.low]


@dataclass(frozen=True)
class Look:
    """How a method is drawn, everywhere."""

    colour: int
    shape: str


def looks(methods: Sequence[Method], first: str) -> dict[str, Look]:
    """By name; the first method has the first colour, whatever its rank."""
    names = sorted((each.name for each in methods), key=lambda name: (name != first, [m.name for m in methods].index(name)))
    return {name: Look(i % COLOURS, SHAPES[(i + i // COLOURS) % COLOURS]) for i, name in enumerate(names)}


# The metric against what it costs


def scatter(found: Comparison, cost: Callable[[Method], float | None], words: Callable[[float], str], log: bool) -> dict[str, Any] | None:
    """Points with their error bars, the Pareto front and labels; None where fewer than two methods have both figures, or tasks differ."""
    metric = found.metric or ""
    known = [each for each in found.methods if metric in each.figures and cost(each) is not None]
    if len(known) < 2 or not found.first:
        return None
    prices = {each.name: float(cost(each) or 0) for each in known}
    spreads = {each.name: each.figures[metric] for each in known}
    across = price_axis(list(prices.values()), log)
    ends = [value for each in spreads.values() for value in (each.mean - (each.error or 0), each.mean + (each.error or 0))]
    up = Axis(min(ends) - 0.08 * (max(ends) - min(ends) or 1), max(ends) + 0.08 * (max(ends) - min(ends) or 1), BOTTOM, TOP)
    front = pareto([(prices[each.name], spreads[each.name].mean if found.rises else -spreads[each.name].mean) for each in known])
    drawn = []
    for i, each in enumerate(known):
        mean, error = spreads[each.name].mean, spreads[each.name].error
        x, y = across.place(prices[each.name]), up.place(mean)
        bar = (up.place(mean - error), up.place(mean + error)) if error else None
        told = f"{each.name}: {metric} {mean:.4g}{f' ± {error:.2g}' if error else ''}, {words(prices[each.name])}"
        drawn.append({"name": each.name, "x": x, "y": y, "bar": bar, "front": i in front, "told": told})
    place_labels(drawn)
    best = sorted((each for each in drawn if each["front"]), key=lambda each: each["x"])
    return {
        "points": drawn,
        "front": stairs([(each["x"], each["y"]) for each in best], LEFT + 460),
        "across": [(across.place(mark), words(mark)) for mark in across.marks(5)],
        "up": [(up.place(mark), f"{mark:g}") for mark in up.marks(6)],
    }


def price_axis(prices: Sequence[float], log: bool) -> Axis:
    low, high = min(price for price in [*prices, max(prices)] if price > 0 or not log) if max(prices) > 0 else 1.0, max(prices)
    if log and max(prices) > 0:
        low = low / 10 if min(prices) <= 0 else low  # nothing trained: at the low end
        room = (high / low) ** 0.07 if high > low else 2.0
        return Axis(low / room, high * room, LEFT, WIDTH - 14, log=True)
    low, room = min(prices), max(0.07 * (high - min(prices)), 0.04 * abs(high)) or 1.0
    return Axis(low - room, high + room, LEFT, WIDTH - 14)


def pareto(found: Sequence[tuple[float, float]]) -> set[int]:
    """Numbers of the (cost, worth) that no other one beats: none is both as cheap and worth as much, and better in one of them."""
    return {
        i
        for i, (cost, worth) in enumerate(found)
        if not any(c <= cost and w >= worth and (c < cost or w > worth) for j, (c, w) in enumerate(found) if j != i)
    }


def stairs(front: Sequence[Point], end: float) -> str:
    """For each price the best that can be had for it: level until the next point, then up to it."""
    if not front:
        return ""
    parts = [f"M{front[0][0]} {front[0][1]}"]
    for x, y in front[1:]:
        parts.append(f"H{x}V{y}")
    return "".join([*parts, f"H{max(end, front[-1][0])}"])


def place_labels(drawn: list[dict[str, Any]]) -> None:
    """Beside each point, where there is room: right, left, above, below, then further off."""
    taken = [(each["x"] - 7, each["y"] - 7, each["x"] + 7, each["y"] + 7) for each in drawn]
    for each in drawn:
        text = cut(each["name"], 22)
        wide, x, y = LETTER * len(text), each["x"], each["y"]
        near = [(x + 10, y + 4, "start"), (x - 10, y + 4, "end"), (x, y - 11, "middle"), (x, y + 19, "middle")]
        far = [
            (x + 9, y - 9, "start"),
            (x - 9, y - 9, "end"),
            (x + 9, y + 17, "start"),
            (x - 9, y + 17, "end"),
            (x, y - 24, "middle"),
            (x, y + 32, "middle"),
        ]
        best = min([*near, *far], key=lambda at: crowd(box(*at, wide), taken))
        taken.append(box(*best, wide))
        each["label"] = (text, *best)


def box(x: float, y: float, anchor: str, wide: float) -> tuple[float, float, float, float]:
    left = x - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
    return left, y - 11, left + wide, y + 3


def crowd(mine: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> float:
    """The area that a label would cover or leave the drawing by."""
    left, top, right, bottom = mine
    over = sum(max(0, min(right, r) - max(left, a)) * max(0, min(bottom, b) - max(top, t)) for a, t, r, b in taken)
    return over + 20 * (max(0, LEFT - left) + max(0, right - WIDTH) + max(0, TOP - 8 - top) + max(0, bottom - BOTTOM))


# Learning curves


def curves(found: Comparison, key: str, style: dict[str, Look]) -> dict[str, Any] | None:
    """The loss by step: each seed a thin line, the mean of a method a thick one with its mark."""
    runs = {each.name: [line for cell in each.cells if len(line := read(cell, key)) > 1] for each in found.methods}
    runs = {name: lines for name, lines in runs.items() if lines}
    if not runs:
        return None
    everything = [point for lines in runs.values() for line in lines for point in line]
    # the first steps may leave the box above, what is learnt later shall not lie flat on its floor
    losses = sorted(loss for _, loss in everything)
    low, high = losses[0], losses[min(len(losses) - 1, int(0.98 * len(losses)))]
    margin = 0.05 * (high - low) or 0.5
    room = min(150.0, 16 + LETTER * max(min(len(name), 18) for name in runs))
    across = Axis(0, max(step for step, _ in everything), LEFT, WIDTH - room)
    up = Axis(low - margin, high + margin, BOTTOM, TOP)
    drawn = []
    for name, lines in runs.items():
        middle = mean(lines)
        places = [(across.place(step), up.place(loss)) for step, loss in middle]
        every = max(1, len(places) // 5)
        offset = style[name].colour * every // COLOURS
        seeds = [path([(across.place(step), up.place(loss)) for step, loss in line]) for line in lines] if len(lines) > 1 else []
        marks = places[offset::every][:-1] if len(places) > 12 else places[:-1]
        told = f"{name}: {middle[-1][1]:.4f} after {middle[-1][0]:,.0f} steps"
        drawn.append({"name": name, "seeds": seeds, "mean": path(places), "marks": marks, "end": places[-1], "told": told})
    for each, y in zip(drawn, apart([each["end"][1] for each in drawn], 14, TOP, BOTTOM - 6), strict=True):
        text = cut(each["name"], 18)
        each["label"] = (text, each["end"][0] + 12, y + 4, round(y, 1))
    marks = [mark for mark in across.marks(5) if mark == int(mark)]
    steps = [(across.place(mark), count(mark) if mark >= 1e4 else f"{mark:,.0f}") for mark in marks]
    return {"lines": drawn, "across": steps, "up": [(up.place(mark), f"{mark:g}") for mark in up.marks(6)]}


def read(cell: Outcome, key: str) -> list[Point]:
    """A run's line: training losses smoothed, no more points than can be seen."""
    line = points(cell.metrics(), key)
    line = smoothed(line) if key == "loss" else line
    every = math.ceil(len(line) / MOST)
    return [point for i, point in enumerate(line) if i % every == 0 or i == len(line) - 1] if line else []


def mean(lines: Sequence[Sequence[Point]]) -> list[Point]:
    """At the steps that all seeds have."""
    known = [dict(line) for line in lines]
    steps = [step for step in known[0] if all(step in each for each in known)]
    return [(step, sum(each[step] for each in known) / len(known)) for step in steps] or list(lines[0])


def path(places: Sequence[Point]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The heights moved as little as keeps labels `gap` apart within low .. high."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(1, len(wanted) - 1)) if len(wanted) > 1 else gap
    placed = list(wanted)
    for before, i in zip([None, *order], order, strict=False):
        placed[i] = max(wanted[i], low if before is None else placed[before] + gap)
    for after, i in zip([None, *reversed(order)], reversed(order), strict=False):
        placed[i] = min(placed[i], high if after is None else placed[after] - gap)
    return placed


# The interval in a row of the table


def intervals(found: Comparison) -> dict[str, dict[str, float]]:
    """Each method's interval on one scale of 0 to 100, with the place of zero."""
    known = {each.name: each.against for each in found.methods if each.against}
    if not known:
        return {}
    low, high = min(0.0, *(each.low for each in known.values())), max(0.0, *(each.high for each in known.values()))
    axis = Axis(low, high if high > low else low + 1, 4, 96)
    return {
        name: {"low": axis.place(each.low), "high": axis.place(each.high), "at": axis.place(each.difference), "zero": axis.place(0)}
        for name, each in known.items()
    }
