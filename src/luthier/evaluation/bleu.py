"""BLEU of a corpus. Papineni et al. 2002, doi:10.3115/1073083.1073135.

Tokenised and smoothed as Post 2018 (arXiv:1804.08771, sacreBLEU) makes it reproducible. 0 to 100.

BP * exp(mean_n log p_n), n = 1..4, with p_n the share of the predictions' n-grams found in a reference (each at most as often
as there) and BP = exp(1 - r/c) where the predictions' length c falls short of the closest references' length r. An order with
no match is smoothed by halving ("exp"): the k-th such order counts 1 / (2^k total).
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from luthier.evaluation._text import Reference, alternatives, is_chinese, ngrams, paired, sums

ORDER = 4


@dataclass(frozen=True)
class BLEU:
    """Overlap of word n-grams with the references; `tokens: auto` takes zh (by character) where a reference holds Chinese, else 13a."""

    tokens: Literal["auto", "13a", "zh", "char", "none"] = "auto"
    lowercase: bool = False
    of: ClassVar[str] = "texts"
    verified: ClassVar[str] = "sacrebleu 2.6 corpus_bleu"

    def score(self, predictions: Sequence[str], references: Sequence[Reference]) -> dict[str, float]:
        return self.figures(sums(self.counts(predictions, references)))

    def counts(self, predictions: Sequence[str], references: Sequence[Reference]) -> list[list[int]]:
        """By row: n-grams that are right, n-grams, both for n = 1..4; words, words wanted."""
        pairs = [(p, alternatives(r)) for p, r in paired(predictions, references)]
        split = SPLITTERS[self.chosen([answer for _, answers in pairs for answer in answers])]
        rows = []
        for prediction, answers in pairs:
            words, golds = self.split(split, prediction), [self.split(split, answer) for answer in answers]
            wanted = min((len(gold) for gold in golds), key=lambda n: (abs(n - len(words)), n))
            found = [ngrams(words, n) for n in range(1, ORDER + 1)]
            right = [(each & union(ngrams(gold, n) for gold in golds)).total() for n, each in enumerate(found, 1)]
            rows.append([*right, *(each.total() for each in found), len(words), wanted])
        return rows

    def figures(self, totals: Sequence[float]) -> dict[str, float]:
        """Of the sums of those counts over any rows."""
        return {"bleu": bleu(totals[:ORDER], totals[ORDER : 2 * ORDER], *totals[2 * ORDER :])}

    def chosen(self, references: Sequence[str]) -> str:
        """The tokeniser in use, worth naming beside the figure."""
        if self.tokens != "auto":
            return self.tokens
        return "zh" if any(map(is_chinese, references)) else "13a"

    def split(self, split: Callable[[str], list[str]], text: str) -> list[str]:
        return split((text.lower() if self.lowercase else text).rstrip())


def bleu(right: Sequence[float], total: Sequence[float], length: float, wanted: float) -> float:
    if not any(right) or not all(total):
        return 0.0
    halving, logs = 1.0, 0.0
    for found, every in zip(right, total, strict=True):
        if found == 0:
            halving *= 2
        logs += math.log(100 * found / every if found else 100 / (halving * every))
    brevity = 1.0 if length >= wanted else math.exp(1 - wanted / length)
    return brevity * math.exp(logs / ORDER)


def union(counts: Iterable[Counter]) -> Counter:
    """The most often any one reference holds each n-gram."""
    most: Counter = Counter()
    for count in counts:
        most |= count
    return most


def western(text: str) -> list[str]:
    """mteval-13a: split off ASCII symbols; full stops and commas unless between digits; a dash after a digit."""
    text = re.sub(r"([!-&(-+/:-@\[-`{-~])", r" \1 ", text)
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def mteval_13a(text: str) -> list[str]:
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, character)
    return western(f" {text} ")


# sacreBLEU's table as it acts: it writes U+20000-U+2A6D6 with four-digit escapes, so what it really separates there is U+2001-U+2A6D
# (dashes, quotes, arrows), and likewise U+2F81-U+2FA1; ideographs beyond U+FFFF stay unseparated.
_SEPARATED = re.compile(
    "([\u2001-\u2a6d\u2e80-\u2fdf\u2ff0-\u303f\u3100-\u312f\u31a0-\u31bf\u31c0-\u31ef\u3200-\u4db5\u4e00-\u9fbb"
    "\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef])"
)


def chinese(text: str) -> list[str]:
    return western(_SEPARATED.sub(r" \1 ", text.strip()))


SPLITTERS: dict[str, Callable[[str], list[str]]] = {
    "13a": mteval_13a,
    "zh": chinese,
    "char": lambda text: list("".join(text.split())),
    "none": str.split,
}
