"""Exact match and F1 of answers. Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1 (SQuAD).

Both 0 to 1.

Answers are compared in lower case without punctuation, English articles or superfluous spaces. F1 is over the bags of words the
two answers share; each Chinese character counts as a word, and Chinese punctuation is dropped from answers that hold Chinese.
With several right answers the best one counts. An unanswerable question has the right answer "".
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.evaluation._text import CHINESE_PUNCTUATION, IDEOGRAPH, PUNCTUATION, Reference, alternatives, f1, is_chinese, paired


@dataclass(frozen=True)
class ExactMatch:
    """Share of answers that are right to the letter, and their overlap with the right one."""

    of: ClassVar[str] = "spans"
    verified: ClassVar[str] = "SQuAD 1.1's published rules, by hand"

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> dict[str, float]:
        exact = overlap = 0.0
        for prediction, reference in paired(predictions, references):
            answers = alternatives(reference) or [""]
            exact += any(normalise(prediction) == normalise(answer) for answer in answers)
            overlap += max(word_f1(prediction, answer) for answer in answers)
        return {"exact_match": exact / len(predictions), "answer_f1": overlap / len(predictions)}


def normalise(answer: str) -> str:
    dropped = PUNCTUATION | CHINESE_PUNCTUATION if is_chinese(answer) else PUNCTUATION
    kept = "".join(c for c in answer.lower() if c not in dropped)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def word_f1(prediction: str, answer: str) -> float:
    guess, gold = words(prediction), words(answer)
    if not guess or not gold:
        return float(guess == gold)
    shared = sum((Counter(guess) & Counter(gold)).values())
    return f1(shared / len(guess), shared / len(gold))


def words(answer: str) -> list[str]:
    return re.sub(f"({IDEOGRAPH})", r" \1 ", normalise(answer)).split()
