"""Macro F1: the mean of the classes' F1, so that rare classes count as much as common ones. Lewis et al. 2004 (RCV1).

0 to 1.

F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c), over the classes that occur among predictions or references; 0 where a class is never right.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.evaluation._text import paired


@dataclass(frozen=True)
class MacroF1:
    """Mean of the classes' F1."""

    of: ClassVar[str] = "labels"
    verified: ClassVar[str] = "scikit-learn f1_score(average='macro')"

    def score(self, predictions: Sequence[Hashable], references: Sequence[Hashable]) -> dict[str, float]:
        right = Counter(p for p, r in paired(predictions, references) if p == r)
        predicted, true = Counter(predictions), Counter(references)
        classes = list(dict.fromkeys([*references, *predictions]))  # in an order that is the same in every process
        # 2 TP + FP + FN is the number predicted plus the number true
        return {"macro_f1": sum(2 * right[c] / (predicted[c] + true[c]) for c in classes) / len(classes)}
