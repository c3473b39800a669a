"""Accuracy, macro F1 and Matthews correlation against scikit-learn."""

import random
import warnings

import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from luthier.evaluation.accuracy import Accuracy
from luthier.evaluation.macro_f1 import MacroF1
from luthier.evaluation.matthews import Matthews


def theirs(predictions: list, references: list) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where a class is missing or alone; the figures are what we compare
        return {
            "accuracy": accuracy_score(references, predictions),
            "macro_f1": f1_score(references, predictions, average="macro"),
            "matthews": matthews_corrcoef(references, predictions),
        }


def ours(predictions: list, references: list) -> dict[str, float]:
    return {k: v for m in (Accuracy(), MacroF1(), Matthews()) for k, v in m.score(predictions, references).items()}


@pytest.mark.parametrize("seed", range(30))
def test_equal_scikit_learn_on_random_labels(seed: int) -> None:
    rng = random.Random(seed)
    true = [rng.randrange(1 + seed % 5) for _ in range(rng.randint(1, 60))]
    # predictions may name a class that never occurs
    guess = [label if rng.random() < 0.5 else rng.randrange(2 + seed % 5) for label in true]
    assert ours(guess, true) == pytest.approx(theirs(guess, true), abs=1e-12)
    names = [f"class {label}" for label in true], [f"class {label}" for label in guess]
    assert ours(names[1], names[0]) == pytest.approx(theirs(names[1], names[0]), abs=1e-12)


@pytest.mark.parametrize(
    ("guess", "true"), [([1, 1, 1], [1, 1, 1]), ([0, 0], [1, 1]), ([0, 0, 0], [0, 1, 0]), ([0, 1], [1, 1]), ([2], [2])]
)
def test_equal_scikit_learn_where_a_single_class_occurs(guess: list[int], true: list[int]) -> None:
    assert ours(guess, true) == pytest.approx(theirs(guess, true))
