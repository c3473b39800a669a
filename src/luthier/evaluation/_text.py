"""What the measures of text share: pairing, several references, n-grams, and which characters are Chinese.

Chinese has no spaces, so measures that count words count each Chinese character as one.
"""

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence

# CJK ideographs with extension A, compatibility ideographs, and the supplementary planes (extension B and later)
IDEOGRAPH = "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
PUNCTUATION = frozenset(string.punctuation)
CHINESE_PUNCTUATION = frozenset("，。！？；：、（）《》〈〉「」『』【】“”‘’…—·～")

Reference = str | Sequence[str]


def is_chinese(text: str) -> bool:
    return re.search(IDEOGRAPH, text) is not None


def alternatives(reference: Reference) -> list[str]:
    """The right answers for one row: a string is one, a list is several."""
    return [reference] if isinstance(reference, str) else list(reference)


def paired(predictions: Sequence, references: Sequence) -> list[tuple]:
    """(prediction, reference) by row; raises where there is nothing to score or the counts differ."""
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references; they must go in pairs")
    if not predictions:
        raise ValueError("nothing to score: no predictions were given")
    return list(zip(predictions, references, strict=True))


def sums(rows: Sequence[Sequence[int]]) -> list[int]:
    """Column by column."""
    return [sum(column) for column in zip(*rows, strict=True)]


def ngrams(tokens: Sequence[Hashable], order: int) -> Counter:
    """How often each run of `order` neighbouring tokens occurs; a string counts its characters."""
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
