"""Pearson and Spearman against SciPy."""

import math
import random

import pytest
from scipy.stats import pearsonr, spearmanr

from luthier.evaluation.pearson import Pearson
from luthier.evaluation.spearman import Spearman


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ties", [False, True])
def test_equal_scipy_on_random_values(seed: int, ties: bool) -> None:
    rng = random.Random(seed)
    true = [float(rng.randint(1, 5)) if ties else rng.gauss(0, 10**seed) for _ in range(rng.randint(3, 50))]
    guess = [value * rng.uniform(-1, 2) + rng.gauss(0, 1) if not ties else float(rng.randint(1, 5)) for value in true]
    assert Pearson().score(guess, true)["pearson"] == pytest.approx(pearsonr(guess, true)[0], abs=1e-12)
    assert Spearman().score(guess, true)["spearman"] == pytest.approx(spearmanr(guess, true)[0], abs=1e-12)


def test_order_alone_matters_to_spearman() -> None:
    assert Spearman().score([1, 2, 3, 4], [1, 10, 100, 1000])["spearman"] == pytest.approx(1)
    assert Pearson().score([1, 2, 3, 4], [1, 10, 100, 1000])["pearson"] < 0.9


def test_a_constant_side_has_no_correlation() -> None:
    assert math.isnan(Pearson().score([1, 1, 1], [1, 2, 3])["pearson"])
    assert math.isnan(Spearman().score([0.1, 0.1, 0.1], [3, 2, 1])["spearman"])
