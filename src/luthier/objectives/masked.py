"""Masked language modelling: find the tokens that were hidden. Devlin et al. 2018, arXiv:1810.04805, section 3.1, task 1.

Of a document of T tokens, [CLS] and [SEP] counted, exactly n = min(most, max(1, round(rate T))) are chosen, never [CLS] or [SEP]. Each of
them becomes [MASK] in 80 of 100 cases, a random token of the whole vocabulary in 10 and stays as it is in 10. With words all pieces of a
word are chosen together (Cui et al. 2019, arXiv:1906.08101, section 2.1): words in random order, each one left out that would exceed n; what
stands in its place is drawn for each piece.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor, nn

from luthier.data.stream import Sample
from luthier.data.tokenizer import Tokenizer
from luthier.objectives._batch import Batch, Example, Reading, Term, quoted
from luthier.objectives._language import best_tokens, refuse_two_ways, token_loss
from luthier.objectives._objective import Objective
from luthier.objectives._sentence import framed
from luthier.sources.model import Model


@dataclass(frozen=True)
class Masked(Objective):
    """A text of more than data.length tokens is cut into documents of that length. The choice follows from (seed, epoch, row) alone."""

    rate: float = 0.15  # share of the tokens that are predicted
    most: int = 76  # of one document; BERT: 20 for 128 tokens, 76 for 512
    words: Literal["", "pieces", "jieba", "given"] = ""  # BERT-WWM's, of ## pieces, of jieba (Chinese) or in the data's column "words"

    needs: ClassVar[tuple[str, ...]] = ("text",)
    verified: ClassVar[str] = "transformers 5.23 BertForMaskedLM's loss; the rule by its properties; whole words: its collator's words"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1 or self.most < 1:
            raise ValueError(f"objective masked needs 0 < rate <= 1 and most >= 1, not rate={self.rate}, most={self.most}")

    def check(self, model: Model) -> None:
        super().check(model)
        if model.net.causal:
            raise ValueError(f"objective masked needs an encoder; {model.source} is a decoder (objective: causal)")
        refuse_two_ways(model, self.kind)
        if "lm" not in model.net.heads:
            out = "set lm: true" if hasattr(getattr(model.net, "config", None), "lm") else "choose a model that predicts tokens"
            raise ValueError(
                f"objective masked needs a head that predicts tokens, and {model.source} has none; {out} (a sentence encoder or a "
                "classifier has lost it: a new head would start from nothing)"
            )
        if model.tokenizer is None or model.tokenizer.mask is None:
            raise ValueError(f"objective masked needs a [MASK] token, and the tokenizer of {model.source} has none")
        if self.words == "pieces" and not any(token.startswith("##") for token in model.tokenizer.inner.get_vocab()):
            raise ValueError(
                f"words: pieces goes by WordPiece's ##, and the tokenizer of {model.source} has none; give the words (words: given)"
            )

    def read(self, sample: Sample, model: Model) -> Reading:
        (text,) = self.fields(sample)
        if self.words == "given":
            return Reading(sample, [text], places(text, sample.row.get("words") or [], sample))
        return Reading(sample, [text], places(text, segmented(text), sample) if self.words == "jieba" else [])

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        assert model.tokenizer is not None
        start, end, room = framed(model.tokenizer, length)
        ids, rng, found = reading.ids[0], reading.sample.rng("masked"), []
        starts = self._starts(reading, model.tokenizer)
        for i in range(0, len(ids), room):
            part = start + ids[i : i + room] + end
            begins = [False] * len(start) + starts[i : i + room] + [True] * len(end)
            found.append(self._hide(part, begins, model.tokenizer, rng))
        return [example for example in found if example.labels["masked"]]

    def _starts(self, reading: Reading, tokenizer: Tokenizer) -> list[bool]:
        """Of each token, whether a word begins there."""
        ids = reading.ids[0]
        if self.words == "pieces":
            return [not tokenizer.token(token).startswith("##") for token in ids]
        inside = {i for start, stop in reading.ranges for i in range(start + 1, stop)}
        return [i not in inside for i in range(len(ids))]

    def _hide(self, ids: list[int], begins: Sequence[bool], tokenizer: Tokenizer, rng: random.Random) -> Example:
        assert tokenizer.mask is not None
        candidates = [i for i, token in enumerate(ids) if token not in (tokenizer.cls, tokenizer.sep)]
        firsts = [k for k, i in enumerate(candidates) if begins[i] or k == 0]
        units = [candidates[a:b] for a, b in pairwise([*firsts, len(candidates)])]
        rng.shuffle(units)
        at = sorted(chosen(units, min(self.most, max(1, round(self.rate * len(ids))))))
        labels = [ids[i] for i in at]
        hidden = list(ids)
        for i in at:
            if rng.random() < 0.8:
                hidden[i] = tokenizer.mask
            elif rng.random() < 0.5:
                hidden[i] = rng.randrange(tokenizer.vocab)
        return Example(hidden, {"masked": at}, {"masked": labels}, reference=labels)

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        return {"masked": token_loss(hidden, heads, batch, "masked")}

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[list[int]]:
        return best_tokens(hidden, heads, batch, "masked")


def chosen(units: Sequence[Sequence[int]], count: int) -> list[int]:
    """The members of the first units that together are at most `count`; one that would exceed it is left out, not cut."""
    found: list[int] = []
    for unit in units:
        if len(found) == count:
            break
        if len(found) + len(unit) <= count:
            found.extend(unit)
    return found


def segmented(text: str) -> list[str]:
    """Chinese words."""
    try:
        import jieba
    except ImportError:
        raise ValueError("words: jieba needs the package jieba: pip install 'luthier[zh]', or give the words in the data") from None
    jieba.setLogLevel(30)  # not a line about its dictionary
    return jieba.lcut(text)


def places(text: str, words: Sequence[str], sample: Sample) -> list[tuple[int, int]]:
    """The characters (start, stop) of each word; ValueError where they do not stand in the text one after the other."""
    if not words and text.strip():
        raise ValueError(f"words: given needs the words of each text, and this row has none under 'words': {quoted(sample)}")
    found, here = [], 0
    for word in words:
        start = text.find(word, here)
        if start < 0 or text[here:start].strip():
            raise ValueError(f"the word {word!r} does not follow in the text at character {here}: {quoted(sample)}")
        here = start + len(word)
        if word.strip():
            found.append((start, here))
    return found
