"""Accuracy: the share of predictions that equal their reference, 0 to 1."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.evaluation._text import paired


@dataclass(frozen=True)
class Accuracy:
    """Share of right labels."""

    of: ClassVar[str] = "labels"
    verified: ClassVar[str] = "scikit-learn accuracy_score"

    def score(self, predictions: Sequence[Hashable], references: Sequence[Hashable]) -> dict[str, float]:
        pairs = paired(predictions, references)
        return {"accuracy": sum(p == r for p, r in pairs) / len(pairs)}
