"""Causal language modelling: predict each token from those before it. Radford et al. 2018, "Improving Language Understanding", eq. 1."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from luthier.data.illustrated import IMAGE
from luthier.data.stream import Sample
from luthier.objectives._batch import Batch, Example, Reading, Term
from luthier.objectives._language import best_tokens, refuse_encoder, token_loss
from luthier.objectives._objective import Objective
from luthier.objectives._pictures import caption, pixels_of, spread
from luthier.sources.model import Model


@dataclass(frozen=True)
class Causal(Objective):
    """Each text ends in the end token; a text of more than data.length tokens is cut into windows that overlap by one token, so that every
    token but a text's first is learnt once. A caption stands behind its picture, all of it is learnt, and what is longer is cut."""

    needs: ClassVar[tuple[str, ...]] = ("text",)
    pictures: ClassVar[bool] = True
    learns: ClassVar[str] = "two tokens of text"
    verified: ClassVar[str] = "transformers 5.23 LlamaForCausalLM's loss"

    def check(self, model: Model) -> None:
        super().check(model)
        refuse_encoder(model, self.kind)

    def read(self, sample: Sample, model: Model) -> Reading:
        (text,) = self.fields(sample)
        return Reading(sample, [IMAGE + caption(sample) if "image" in sample.row else text])

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        assert model.tokenizer is not None
        start, end = model.tokenizer.frame()
        ids, _ = spread(start + reading.ids[0] + end, [], reading.sample, model)
        pixels = pixels_of(reading.sample, model)
        if pixels:
            return _behind(pixels, ids[:length], model)
        return [_window(ids[i : i + length]) for i in range(0, len(ids) - 1, length - 1)]

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        return {"lm": token_loss(hidden, heads, batch, "lm")}

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[list[int]]:
        return best_tokens(hidden, heads, batch, "lm")


def _behind(pixels: tuple[Tensor, ...], ids: list[int], model: Model) -> list[Example]:
    """What follows the picture; nothing where the cut leaves no token behind it."""
    at = [i for i in range(len(ids) - 1) if ids[i + 1] != model.net.vocab and model.net.vocab in ids[: i + 1]]
    labels = [ids[i + 1] for i in at]
    return [Example(ids, {"lm": at}, {"lm": labels}, reference=labels, pictures=pixels)] if labels else []


def _window(ids: list[int]) -> Example:
    return Example(ids, {"lm": list(range(len(ids) - 1))}, {"lm": ids[1:]}, reference=ids[1:])
