"""One text made of another, by an encoder-decoder: translating, summarising, answering. Vaswani et al. 2017, arXiv:1706.03762, section 5.

The decoder reads the start token and the target and learns, at every position, the next token (teacher forcing), the end token last. With
smoothing e the wanted distribution has 1 - e + e/V at the token and e/V elsewhere (Szegedy et al. 2015, arXiv:1512.00567, section 7).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.data.stream import Sample
from luthier.objectives._batch import Batch, Example, Reading, Term
from luthier.objectives._language import best_tokens, token_loss
from luthier.objectives._objective import Objective
from luthier.objectives._pairs import in_targets, pair_inputs, start_of
from luthier.sources.model import Model


@dataclass(frozen=True)
class Translate(Objective):
    """Sources and targets are each cut at data.length tokens. What is measured is a likelihood: smoothing is for learning alone."""

    smoothing: float = 0.0  # the paper's is 0.1
    before: str = ""  # stands before every source: T5's "translate English to German: "

    needs: ClassVar[tuple[str, ...]] = ("source", "target")
    pairs: ClassVar[bool] = True
    learns: ClassVar[str] = "a target"
    verified: ClassVar[str] = "torch's CrossEntropyLoss with label smoothing, transformers 5.23 T5ForConditionalGeneration's loss"

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"objective translate needs 0 <= smoothing < 1, not {self.smoothing}")

    def check(self, model: Model) -> None:
        super().check(model)
        if not model.encoder_decoder:
            raise ValueError(f"objective translate needs an encoder-decoder (t5, transformer), and {model.source} is none; take chat")

    def read(self, sample: Sample, model: Model) -> Reading:
        source, target = self.fields(sample)
        return Reading(sample, [self.before + source, target])

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        """A document for the encoder and one for the decoder."""
        assert model.tokenizer is not None
        end = [] if model.tokenizer.eos is None else [model.tokenizer.eos]
        source, target = (ids[: length - len(end)] + end for ids in reading.ids)
        if not source or not target:
            return []
        ids = [*source, start_of(model), *target[:-1]]
        at = list(range(len(source), len(ids)))
        return [Example(ids, {"lm": at}, {"lm": target}, lengths=(len(source), len(target)), reference=target)]

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return pair_inputs(batch)

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        smoothing = self.smoothing if torch.is_grad_enabled() else 0.0
        return {"lm": token_loss(hidden, heads, in_targets(batch), "lm", smoothing)}

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[list[int]]:
        return best_tokens(hidden, heads, in_targets(batch), "lm")
