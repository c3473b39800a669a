"""Pearson correlation of predicted and true values. Pearson 1895.

Covariance over the product of the standard deviations, -1 to 1.

NaN where either side is constant (no correlation is defined), as in SciPy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.evaluation._rank import correlation


@dataclass(frozen=True)
class Pearson:
    """Linear correlation of values."""

    of: ClassVar[str] = "values"
    verified: ClassVar[str] = "SciPy pearsonr"

    def score(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"pearson": correlation(predictions, references)}
