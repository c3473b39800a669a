"""The paired bootstrap against SciPy's, against every resample there is, and against a closed form."""

import itertools
import math
import random

import numpy as np
import pytest
from scipy import stats

from luthier.comparing.statistics import RESAMPLES, Total, drawn_against, grain, mean_against, spread
from luthier.evaluation.macro_f1 import MacroF1


def rows(kind: str, count: int = 300) -> list[float]:
    """Differences of two methods, row by row."""
    rng = np.random.default_rng(5)
    made = {
        "right or wrong": rng.choice([-1, 0, 1], count, p=[0.05, 0.85, 0.1]),
        "over three seeds": (rng.binomial(3, 0.85, count) - rng.binomial(3, 0.8, count)) / 3,
        "losses": rng.normal(0.05, 0.5, count),
        "heavy tails": rng.standard_t(2, count) * 0.1 + 0.02,
        "mostly equal": np.where(rng.random(count) < 0.95, 0, rng.normal(0.3, 1, count)),
        "a coarser grain": rng.choice([0, 1, 1 / 3, -1], count, p=[0.5, 0.3, 0.004, 0.196]),
    }
    return made[kind].tolist()


KINDS = ["right or wrong", "over three seeds", "losses", "heavy tails", "mostly equal", "a coarser grain"]


@pytest.mark.parametrize("kind", KINDS)
def test_interval_and_p_are_those_of_scipy(kind: str):
    values = rows(kind)
    found = mean_against(values)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, batch=1000, method="percentile", rng=np.random.default_rng(1))
    drawn = np.asarray(theirs.bootstrap_distribution)
    # the quantile of 20,000 draws strays by about sqrt(.025 * .975 / 20,000) = 0.0011 in rank: 0.02 deviations; four of those, and a step
    near = 0.08 * drawn.std() + (1 / 3 / len(values) if kind in KINDS[:2] or kind == KINDS[5] else 0)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=near)
    tiny = 1e-12
    p = min(1.0, 2 * min(np.mean(drawn <= tiny), np.mean(drawn >= -tiny)))
    assert found.p == pytest.approx(p, abs=8 * math.sqrt(max(p, 1e-4) / 20_000))
    assert found.difference == pytest.approx(np.mean(values))
    assert found.rows == len(values)


@pytest.mark.parametrize("values", [(1.0, 0.0, 0.0, -1.0, 1.0), (2 / 3, 0.0, 1 / 3, -1 / 3, 1.0), (3.0, 3.0, 0.0, 0.0, 6.0)])
def test_the_distribution_is_that_of_every_resample(values: tuple[float, ...]):
    total = Total.of(values)
    sums = [sum(drawn) for drawn in itertools.product(values, repeat=len(values))]
    for at in sorted(set(sums)):
        assert total.at_most(at) == pytest.approx(sum(s <= at + 1e-9 for s in sums) / len(sums), abs=1e-9)
        assert total.at_least(at) == pytest.approx(sum(s >= at - 1e-9 for s in sums) / len(sums), abs=1e-9)


@pytest.mark.parametrize("count", [20, 500, 5000])
def test_p_of_two_wins_is_the_chance_of_drawing_neither(count: int):
    found = mean_against([1.0, 1.0] + [0.0] * (count - 2))
    assert found.p == pytest.approx(2 * (1 - 2 / count) ** count, rel=1e-9)


def test_methods_that_agree_on_every_row_do_not_differ():
    found = mean_against([0.0] * 50)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_swapping_the_methods_turns_the_interval_round():
    values = rows("losses")
    there, back = mean_against(values), mean_against([-value for value in values])
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low), abs=1e-3)
    assert back.p == pytest.approx(there.p, rel=1e-3)


@pytest.mark.parametrize(
    "values, step", [((1.0, 0.0, -2.0), 1.0), ((1 / 3, 2 / 3), 1 / 3), ((0.5, 1.5), 0.5), ((2.0, 4.0), 2.0), ((math.pi, 1.0), None)]
)
def test_the_grain_of_values(values: tuple[float, ...], step: float | None):
    assert grain(values) == (step if step is None else pytest.approx(step))


@pytest.mark.parametrize("kind", ["right or wrong", "losses"])
def test_drawn_rows_give_the_exact_interval_of_a_mean(kind: str):
    values = rows(kind)
    exact, drawn = mean_against(values), drawn_against(lambda chosen: sum(values[i] for i in chosen) / len(chosen), len(values))
    deviation = np.std(values) / math.sqrt(len(values))
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.3 * deviation)
    assert drawn.p == pytest.approx(exact.p, abs=4 * math.sqrt(max(exact.p, 1 / RESAMPLES) / RESAMPLES) + 1 / RESAMPLES)


def test_macro_f1_on_drawn_rows_is_scipys_paired_bootstrap():
    rng = random.Random(0)
    right = [rng.choice("aabbc") for _ in range(120)]
    one, two = ([label if rng.random() < share else rng.choice("abc") for label in right] for share in (0.6, 0.75))

    def difference(chosen: list[int]) -> float:
        gold = [right[i] for i in chosen]
        return MacroF1().score([two[i] for i in chosen], gold)["macro_f1"] - MacroF1().score([one[i] for i in chosen], gold)["macro_f1"]

    found = drawn_against(difference, 120)
    theirs = stats.bootstrap(
        (np.arange(120),),
        lambda chosen: difference(chosen.tolist()),
        n_resamples=2000,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.3 * float(theirs.standard_error))


def test_the_spread_is_scipys_standard_error():
    assert spread([0.5, 0.75, 0.9]).error == pytest.approx(stats.sem([0.5, 0.75, 0.9]))
    assert spread([0.5]).error is None
