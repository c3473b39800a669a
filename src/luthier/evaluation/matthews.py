"""Matthews correlation for any number of classes. Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006.

With s rows, c of them right, and t_k, p_k the times class k is true and predicted:
(c s - sum_k t_k p_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2)), in -1 to 1; 0 where only one class is predicted or true.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.evaluation._text import paired


@dataclass(frozen=True)
class Matthews:
    """Correlation between predicted and true labels (GLUE's measure for CoLA)."""

    of: ClassVar[str] = "labels"
    verified: ClassVar[str] = "scikit-learn matthews_corrcoef"

    def score(self, predictions: Sequence[Hashable], references: Sequence[Hashable]) -> dict[str, float]:
        pairs = paired(predictions, references)
        rows, right = len(pairs), sum(p == r for p, r in pairs)
        predicted, true = Counter(predictions), Counter(references)
        covariance = right * rows - sum(true[k] * predicted[k] for k in true)
        spread = (rows**2 - sum(n * n for n in predicted.values())) * (rows**2 - sum(n * n for n in true.values()))
        return {"matthews": covariance / math.sqrt(spread) if spread else 0.0}
