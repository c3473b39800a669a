"""F-score of character n-grams, chrF and chrF++. Popovic 2015, doi:10.18653/v1/W15-3049.

Of a corpus, 0 to 100; chrF++ (Popovic 2017) is word_order: 2.

(1 + beta^2) P R / (beta^2 P + R) with P and R the means of the precisions and recalls of the orders both sides have. White space does not
count, so Chinese needs nothing of its own. With several references each row uses the one that scores best for it (sacreBLEU's rule).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.evaluation._text import PUNCTUATION, Reference, alternatives, ngrams, paired, sums

Counts = list[tuple[int, int, int]]  # per order: n-grams predicted, n-grams in the reference, matches


@dataclass(frozen=True)
class ChrF:
    """F-score of character n-grams, recall weighing beta times as much as precision."""

    char_order: int = 6
    word_order: int = 0
    beta: float = 2.0
    of: ClassVar[str] = "texts"
    verified: ClassVar[str] = "sacrebleu 2.6 corpus_chrf"

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> dict[str, float]:
        return self.figures(sums(self.counts(predictions, references)))

    def counts(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[list[int]]:
        """By row: n-grams predicted, in the reference and matching, for each order."""
        return [[count for order in self.best(p, alternatives(r)) for count in order] for p, r in paired(predictions, references)]

    def figures(self, totals: Sequence[float]) -> dict[str, float]:
        """Of the sums of those counts over any rows."""
        return {"chrf": 100 * self.f_score(list(zip(totals[::3], totals[1::3], totals[2::3], strict=True)))}

    def best(self, prediction: str, answers: list[str]) -> Counts:
        guess = self.grams(prediction)
        return max((matches(guess, self.grams(answer)) for answer in answers), key=self.f_score)

    def grams(self, text: str) -> list[Counter]:
        characters, words = "".join(text.split()), split_words(text)
        of_characters = [ngrams(characters, n) for n in range(1, self.char_order + 1)]
        return of_characters + [ngrams(words, n) for n in range(1, self.word_order + 1)]

    def f_score(self, counts: Sequence[tuple[float, float, float]]) -> float:
        both = [(m / p, m / r) for p, r, m in counts if p and r]
        if not both:
            return 0.0
        precision, recall = (sum(side) / len(both) for side in zip(*both, strict=True))
        weight = self.beta**2
        return (1 + weight) * precision * recall / (weight * precision + recall) if precision + recall else 0.0


def matches(guess: list[Counter], gold: list[Counter]) -> Counts:
    # an order the reference is too short for counts on neither side
    return [(g.total() if r else 0, r.total(), (g & r).total()) for g, r in zip(guess, gold, strict=True)]


def split_words(text: str) -> list[str]:
    """Words, with one punctuation mark split off the end or else the beginning of each."""
    return [part for word in text.split() for part in split_mark(word)]


def split_mark(word: str) -> tuple[str, ...]:
    if len(word) == 1:
        return (word,)
    if word[-1] in PUNCTUATION:
        return word[:-1], word[-1]
    return (word[0], word[1:]) if word[0] in PUNCTUATION else (word,)
