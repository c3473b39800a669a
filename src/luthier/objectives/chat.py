"""Supervised fine-tuning on conversations: learn what the assistant says. Ouyang et al. 2022, arXiv:2203.02155, section 3.5.

Which tokens are the assistant's follows from the characters the template wrote for it: a token is learnt when one of its
characters is. The end of the turn is among them. With prompt: bidirectional the tokens before the first answer see each other, as in
a prefix language model (Raffel et al. 2019, arXiv:1910.10683, section 3.2.1).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from luthier.data.stream import Sample
from luthier.objectives._batch import Batch, Example, Reading, Term, quoted
from luthier.objectives._language import best_tokens, refuse_encoder, token_loss
from luthier.objectives._objective import Objective
from luthier.objectives._pictures import pixels_of, spread, whole
from luthier.sources.model import Model


@dataclass(frozen=True)
class Chat(Objective):
    """A conversation of more than data.length tokens is cut at its end; one whose first answer lies beyond is skipped and counted."""

    prompt: Literal["causal", "bidirectional"] = "causal"  # how the tokens before the first answer see each other

    needs: ClassVar[tuple[str, ...]] = ("messages",)
    pictures: ClassVar[bool] = True
    learns: ClassVar[str] = "an answer that begins"
    verified: ClassVar[str] = "transformers 5.23 LlamaForCausalLM's loss"

    def check(self, model: Model) -> None:
        super().check(model)
        refuse_encoder(model, self.kind)
        if model.template is None:
            raise ValueError(f"{model.source} has no chat template; name one: data.template: human_assistant (or alpaca, vicuna, a file)")

    def read(self, sample: Sample, model: Model) -> Reading:
        (messages,) = self.fields(sample)
        assert model.template is not None
        try:
            text, spans = model.template.spans(messages)
        except ValueError as error:
            raise ValueError(f"{error}: {quoted(sample)}") from None
        return Reading(sample, [text], spans)

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        ids, ranges = spread(reading.ids[0], reading.ranges, reading.sample, model)
        ids, pixels = ids[:length], pixels_of(reading.sample, model)
        at: list[int] = []
        labels: list[int] = []
        for start, stop in ranges:
            start, stop = max(start, 1), min(stop, length)
            at += range(start - 1, stop - 1)
            labels += ids[start:stop]
        if not labels or not whole(ids, len(pixels), model):
            return []
        prompt = at[0] + 1 if self.prompt == "bidirectional" else 0
        return [Example(ids, {"lm": at}, {"lm": labels}, prompt=prompt, reference=labels, pictures=pixels)]

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        return {"lm": token_loss(hidden, heads, batch, "lm")}

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[list[int]]:
        return best_tokens(hidden, heads, batch, "lm")
