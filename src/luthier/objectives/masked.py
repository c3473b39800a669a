"""Masked language modelling: find the tokens that were hidden. Devlin et al. 2018, arXiv:1810.04805, section 3.1, task 1.

Of a document of T tokens, [CLS] and [SEP] counted, exactly n = min(most, max(1, round(rate T))) are chosen, never [CLS] or [SEP]. Each of
them becomes [MASK] in 80 of 100 cases, a random token of the whole vocabulary in 10 and stays as it is in 10.
"""

import random
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from luthier.data.stream import Sample
from luthier.data.tokenizer import Tokenizer
from luthier.objectives._batch import Batch, Example, Reading, Term
from luthier.objectives._language import best_tokens, token_loss
from luthier.objectives._objective import Objective
from luthier.objectives._sentence import frame
from luthier.sources.model import Model


@dataclass(frozen=True)
class Masked(Objective):
    """A text of more than data.length tokens is cut into documents of that length. The choice follows from (seed, epoch, row) alone."""

    rate: float = 0.15  # share of the tokens that are predicted
    most: int = 76  # of one document; BERT: 20 for 128 tokens, 76 for 512

    needs: ClassVar[tuple[str, ...]] = ("text",)
    verified: ClassVar[str] = "transformers 5.23 BertForMaskedLM's loss; the rule by its properties"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1 or self.most < 1:
            raise ValueError(f"objective masked needs 0 < rate <= 1 and most >= 1, not rate={self.rate}, most={self.most}")

    def check(self, model: Model) -> None:
        super().check(model)
        if model.net.causal:
            raise ValueError(f"objective masked needs an encoder; {model.source} is a decoder (objective: causal)")
        if "lm" not in model.net.heads:
            out = "set lm: true" if hasattr(getattr(model.net, "config", None), "lm") else "choose a model that predicts tokens"
            raise ValueError(
                f"objective masked needs a head that predicts tokens, and {model.source} has none; {out} (a sentence encoder or a "
                "classifier has lost it: a new head would start from nothing)"
            )
        if model.tokenizer is None or model.tokenizer.mask is None:
            raise ValueError(f"objective masked needs a [MASK] token, and the tokenizer of {model.source} has none")

    def read(self, sample: Sample, model: Model) -> Reading:
        return Reading(sample, list(self.fields(sample)))

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        assert model.tokenizer is not None
        start, end = frame(model.tokenizer)
        room = length - len(start) - len(end)
        if room < 1:
            raise ValueError(f"data.length={length} leaves no room for text beside the special tokens")
        ids, rng = reading.ids[0], reading.sample.rng("masked")
        return [self._hide(start + ids[i : i + room] + end, model.tokenizer, rng) for i in range(0, len(ids), room)]

    def _hide(self, ids: list[int], tokenizer: Tokenizer, rng: random.Random) -> Example:
        assert tokenizer.mask is not None
        candidates = [i for i, token in enumerate(ids) if token not in (tokenizer.cls, tokenizer.sep)]
        rng.shuffle(candidates)
        count = min(self.most, max(1, round(self.rate * len(ids))))
        at = sorted(candidates[:count])
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
