"""Entity F1 against seqeval."""

import os
import random
import warnings
from pathlib import Path

import pytest
from seqeval.metrics import f1_score, precision_score, recall_score

from luthier.evaluation.span_f1 import SpanF1, entities


def theirs(guess: list[list[str]], gold: list[list[str]]) -> dict[str, float]:
    figures = {"span_precision": precision_score, "span_recall": recall_score, "span_f1": f1_score}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns where nothing is an entity; the figures are what we compare
        return {name: float(figure(gold, guess)) for name, figure in figures.items()}  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("marks", ["BI", "BIES"])
@pytest.mark.parametrize("seed", range(15))
def test_equals_seqeval_on_random_tags_broken_ones_included(seed: int, marks: str) -> None:
    rng = random.Random(seed)
    tags = ["O"] + [f"{mark}-{kind}" for mark in marks for kind in ("PER", "LOC.NAM", "a-b")]
    gold = [[rng.choice(tags) for _ in range(rng.randint(1, 20))] for _ in range(rng.randint(1, 20))]
    guess = [[tag if rng.random() < 0.7 else rng.choice(tags) for tag in row] for row in gold]
    assert SpanF1().score(guess, gold) == pytest.approx(theirs(guess, gold), abs=1e-12)


@pytest.mark.parametrize("tags", [["O", "O"], ["I-PER", "I-PER"], ["B-PER", "B-PER"], ["B-PER", "I-LOC"]])
def test_equals_seqeval_where_nothing_or_all_is_an_entity(tags: list[str]) -> None:
    assert SpanF1().score([tags], [["O", "B-PER"]]) == pytest.approx(theirs([tags], [["O", "B-PER"]]))
    assert SpanF1().score([["O", "B-PER"]], [tags]) == pytest.approx(theirs([["O", "B-PER"]], [tags]))


def test_equals_seqeval_on_real_chinese_entities() -> None:
    if "LUTHIER_DATA" not in os.environ:
        pytest.skip("LUTHIER_DATA is not set: no real entities to score")
    path = next(p for p in sorted((Path(os.environ["LUTHIER_DATA"]) / "weibo_ner_zh").iterdir()) if "dev" in p.name)
    rows = [[line.split()[-1] for line in row.splitlines()] for row in path.read_text().strip().split("\n\n")]
    guess = [row[1:] + ["O"] if i % 2 else row for i, row in enumerate(rows)]
    assert SpanF1().score(guess, rows) == pytest.approx(theirs(guess, rows), abs=1e-12)
    assert len(set().union(*(entities(row) for row in rows))) > 20


def test_rows_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="row 0: 1 predicted tags but 2 true ones"):
        SpanF1().score([["O"]], [["O", "O"]])
