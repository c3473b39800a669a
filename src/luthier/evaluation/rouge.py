"""ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum of summaries. Lin 2004, sections 2, 3.1 and 3.2.

Mean F1 over the rows, 0 to 1.

1 and 2 count shared words and pairs of neighbours; L is the longest common subsequence; Lsum takes each line of the reference and
the union of its common subsequences with all lines of the prediction. Words are runs of a-z and 0-9, lowered, not stemmed, and
single Chinese characters. With several references each figure takes the best.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.evaluation._text import IDEOGRAPH, Reference, alternatives, f1, ngrams, paired

WORD = re.compile(f"[a-z0-9]+|{IDEOGRAPH}")


@dataclass(frozen=True)
class ROUGE:
    """Overlap of summaries with their references."""

    of: ClassVar[str] = "texts"
    verified: ClassVar[str] = "rouge-score 0.1.2 RougeScorer, with words and by character"

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> dict[str, float]:
        rows = [best(p, alternatives(r)) for p, r in paired(predictions, references)]
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def best(prediction: str, answers: list[str]) -> dict[str, float]:
    scores = [rouge(prediction, answer) for answer in answers]
    return {name: max(score[name] for score in scores) for name in scores[0]}


def rouge(prediction: str, answer: str) -> dict[str, float]:
    guess, gold = words(prediction), words(answer)
    return {
        "rouge1": overlap(ngrams(guess, 1), ngrams(gold, 1)),
        "rouge2": overlap(ngrams(guess, 2), ngrams(gold, 2)),
        "rougeL": ratio(len(common(gold, guess)), len(guess), len(gold)),
        "rougeLsum": summary(prediction, answer),
    }


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def overlap(guess: Counter, gold: Counter) -> float:
    return ratio((guess & gold).total(), guess.total(), gold.total())


def ratio(shared: int, predicted: int, true: int) -> float:
    return f1(shared / max(predicted, 1), shared / max(true, 1))


def summary(prediction: str, answer: str) -> float:
    guesses, golds = ([words(line) for line in text.split("\n") if line] for text in (prediction, answer))
    left = Counter(word for line in guesses for word in line)
    predicted, true, shared = left.total(), sum(map(len, golds)), 0
    for gold in golds:
        for i in sorted({i for guess in guesses for i in common(gold, guess)}):
            # each word of the prediction is a match once, as in ROUGE-1.5.5
            shared, left[gold[i]] = shared + (left[gold[i]] > 0), left[gold[i]] - 1
    return ratio(shared, predicted, true)


def common(gold: list[str], guess: list[str]) -> list[int]:
    """Positions in `gold` of a longest common subsequence; among several, the one that keeps to the end of `guess`."""
    table = [[0] * (len(guess) + 1)]
    for word in gold:
        above, row = table[-1], [0]
        for j, other in enumerate(guess):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        table.append(row)
    i, j, found = len(gold), len(guess), []
    while i and j:
        if gold[i - 1] == guess[j - 1]:
            i, j = i - 1, j - 1
            found.append(i)
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return found[::-1]
