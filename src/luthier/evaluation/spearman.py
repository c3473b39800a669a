"""Spearman rank correlation: Pearson correlation of the ranks. Spearman 1904.

-1 to 1.

Tied values share their mean rank; NaN where a side is constant, as in SciPy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.evaluation._rank import correlation, ranks


@dataclass(frozen=True)
class Spearman:
    """Correlation of the order of values."""

    of: ClassVar[str] = "values"
    verified: ClassVar[str] = "SciPy spearmanr"

    def score(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"spearman": correlation(ranks(predictions), ranks(references))}
