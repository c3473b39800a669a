"""Mean and spread over seeds, and the paired bootstrap. Efron and Tibshirani 1993, chapters 13 and 16; Koehn 2004 for tests of text.

The bootstrap draws the held-out rows again, as many as there are, with replacement, and asks how the difference of two methods would
have come out. For a mean over rows nothing has to be drawn: the total of n draws has the characteristic function phi(t)^n, with
phi(t) = mean_i exp(i t d_i) over the rows' differences d, so its distribution is found by Fourier inversion: the limit of infinitely
many resamples, without numpy, in milliseconds. Other figures (macro F1, a correlation) are computed on drawn rows.

Intervals are percentiles; p = 2 min(P(D* <= 0), P(D* >= 0)).
"""

import cmath
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LEVEL = 0.95
RESAMPLES = 2000
FEWEST = 10  # rows, below which a bootstrap says nothing


@dataclass(frozen=True)
class Spread:
    """A figure over seeds. error: the standard error of the mean, None for one seed."""

    mean: float
    error: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Against:
    """How much higher a method's figure is than the first method's, over the held-out rows."""

    difference: float
    low: float
    high: float
    p: float
    rows: int


def spread(values: Sequence[float]) -> Spread:
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Spread(mean, None, tuple(values))
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Spread(mean, math.sqrt(variance / len(values)), tuple(values))


def mean_against(differences: Sequence[float], level: float = LEVEL) -> Against:
    """The exact paired bootstrap of a mean of rows' differences."""
    rows, mean = len(differences), math.fsum(differences) / len(differences)
    if max(differences) - min(differences) < 1e-12:
        return Against(mean, mean, mean, float(abs(mean) < 1e-12), rows)
    total = Total.of(differences)
    low, high = (total.quantile(share) / rows for share in ((1 - level) / 2, (1 + level) / 2))
    return Against(mean, low, high, min(1.0, 2 * min(total.at_most(0), total.at_least(0))), rows)


@dataclass(frozen=True)
class Total:
    """The distribution of the sum of n draws from n values, on the grid (centre + r) * step, r = -half .. half.

    Values that are whole multiples of something (labels right or wrong, over a few seeds) have that as their step and the sums are exact;
    others get steps far below what a figure shows.
    """

    step: float
    centre: int
    half: int
    waves: tuple[tuple[float, complex], ...]  # frequency; phi^n there, turned to the centre, over the geometric series' denominator

    @classmethod
    def of(cls, values: Sequence[float]) -> "Total":
        n, mean = len(values), math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values))  # of the sum
        step, most = grain(values), max(abs(value - mean) for value in values)
        exact, step = step is not None, step or deviation / 500
        # ten deviations, and room for the largest value to be drawn once or twice more
        half, centre = math.ceil((10 * deviation + 2 * most) / step), round(n * mean / step)
        counts = Counter(round(value / step) if exact else value / step for value in values)
        waves = []
        for j in range(1, half + 1 if exact else 300):
            angle = 2 * math.pi * j / (2 * half + 1)
            wave = (sum(count * cmath.rect(1.0, angle * value) for value, count in counts.items()) / n) ** n
            if abs(wave) > 1e-15:
                waves.append((angle, wave * cmath.rect(1.0, -angle * centre) / (1 - cmath.rect(1.0, -angle))))
            elif not exact:
                break
        return cls(step, centre, half, tuple(waves))

    def below(self, r: int) -> float:
        """P(sum <= (centre + r) * step)."""
        if not -self.half <= r < self.half:
            return float(r >= self.half)
        series = (wave * (cmath.rect(1.0, angle * self.half) - cmath.rect(1.0, -angle * (r + 1))) for angle, wave in self.waves)
        return min(1.0, max(0.0, (r + self.half + 1 + 2 * sum(each.real for each in series)) / (2 * self.half + 1)))

    def at_most(self, value: float) -> float:
        return self.below(math.floor(value / self.step + 1e-9) - self.centre)

    def at_least(self, value: float) -> float:
        return 1 - self.below(math.ceil(value / self.step - 1e-9) - self.centre - 1)

    def quantile(self, share: float) -> float:
        """The smallest sum that `share` of the distribution does not exceed."""
        low, high = -self.half, self.half
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.below(middle) >= share - 1e-9 else (middle + 1, high)
        return (self.centre + low) * self.step


def grain(values: Sequence[float]) -> float | None:
    """The largest step of which all values are whole multiples; None where it is not 1/1 to 1/60 or a multiple of that."""
    distinct = set(values)
    for parts in range(1, 61):
        if all(abs(value * parts - round(value * parts)) < 1e-9 for value in distinct):
            return math.gcd(*(round(value * parts) for value in distinct)) / parts
    return None


def drawn_against(difference: Callable[[list[int]], float], rows: int, level: float = LEVEL) -> Against:
    """The paired bootstrap of any figure. difference: of the two methods, on the rows with these numbers; NaN where it has none."""
    rng, everything = random.Random(0), range(rows)
    found = sorted(value for _ in range(RESAMPLES) if math.isfinite(value := difference(rng.choices(everything, k=rows))))
    if not found:
        raise ValueError("the figure is undefined on every resample")
    low, high = (found[min(len(found) - 1, int(share * len(found)))] for share in ((1 - level) / 2, (1 + level) / 2))
    sides = sum(value <= 0 for value in found), sum(value >= 0 for value in found)
    # counting what was observed as one more draw, so that no p is zero
    return Against(difference(list(everything)), low, high, min(1.0, 2 * (min(sides) + 1) / (len(found) + 1)), rows)
