"""F1 of whole entities over BIO tags. Tjong Kim Sang and De Meulder 2003 (CoNLL).

An entity is right when its type and both its ends are right.

Precision, recall and F1 are pooled over all entities of all rows. Broken sequences are read generously, as conlleval does: an I-
that does not continue an entity of its type starts one. BIOES tags (E- ends an entity, S- is one alone) are read too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.evaluation._text import f1, paired, sums


@dataclass(frozen=True)
class SpanF1:
    """F1 of whole entities."""

    of: ClassVar[str] = "tags"
    verified: ClassVar[str] = "seqeval precision_score, recall_score, f1_score"

    def score(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        return self.figures(sums(self.counts(predictions, references)))

    def counts(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[list[int]]:
        """By row: entities that are right, predicted, true."""
        rows = []
        for row, (guess, gold) in enumerate(paired(predictions, references)):
            if len(guess) != len(gold):
                raise ValueError(f"row {row}: {len(guess)} predicted tags but {len(gold)} true ones")
            found, wanted = entities(guess), entities(gold)
            rows.append([len(found & wanted), len(found), len(wanted)])
        return rows

    def figures(self, totals: Sequence[float]) -> dict[str, float]:
        """Of the sums of those counts over any rows."""
        right, predicted, true = totals
        precision, recall = right / max(predicted, 1), right / max(true, 1)
        return {"span_precision": precision, "span_recall": recall, "span_f1": f1(precision, recall)}


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, first, one past the last) of every entity in one row of tags."""
    found, start, before, kind = set(), 0, "O", ""
    for i, tag in enumerate([*tags, "O"]):
        mark, _, now = tag.partition("-")
        starts = mark in ("B", "S") or (mark != "O" and (before in ("O", "E", "S") or now != kind))
        if before != "O" and (starts or mark == "O"):
            found.add((kind, start, i))
        if starts:
            start = i
        before, kind = mark, now
    return found
