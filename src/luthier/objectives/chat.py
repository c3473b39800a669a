"""Supervised fine-tuning on conversations: learn what the assistant says. Ouyang et al. 2022, arXiv:2203.02155, section 3.5.

Which tokens are the assistant's follows from the characters the template wrote for it: a token is learnt when one of its
characters is. The end of the turn is among them. With prompt: bidirectional the tokens before the first answer see each other, as in
a prefix language model (Raffel et al. 2019, arXiv:1910.10683, section 3.2.1).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from tokenizers import Encoding
from torch import Tensor, nn

from luthier.data.stream import Sample
from luthier.objectives._batch import Batch, Example, Reading, Term, quoted
from luthier.objectives._language import best_tokens, refuse_encoder, token_loss
from luthier.objectives._objective import Objective
from luthier.sources.model import Model


@dataclass(frozen=True)
class Chat(Objective):
    """A conversation of more than data.length tokens is cut at its end; one whose first answer lies beyond is skipped and counted."""

    prompt: Literal["causal", "bidirectional"] = "causal"  # how the tokens before the first answer see each other

    needs: ClassVar[tuple[str, ...]] = ("messages",)
    learns: ClassVar[str] = "an answer that begins"

    def check(self, model: Model) -> None:
        super().check(model)
        refuse_encoder(model, self.kind)
        if model.template is None:
            raise ValueError(f"{model.source} has no chat template; name one: data.template: human_assistant (or alpaca, vicuna, a file)")

    def read(self, sample: Sample, model: Model) -> Reading:
        assert model.template is not None
        try:
            text, spans = model.template.spans(self.fields(sample)[0])
        except ValueError as error:
            raise ValueError(f"{error}: {quoted(sample)}") from None
        return Reading(sample, [text], spans)

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        code = reading.codes[0]
        ids = code.ids[:length]
        ranges = token_ranges(code, reading.spans, len(reading.texts[0]))
        learnt = [i for start, stop in ranges for i in range(max(start, 1), min(stop, length))]
        if not learnt:
            return []
        labels = [ids[i] for i in learnt]
        prompt = learnt[0] if self.prompt == "bidirectional" else 0
        return [Example(ids, {"lm": [i - 1 for i in learnt]}, {"lm": labels}, prompt=prompt, reference=labels)]

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        return {"lm": token_loss(hidden, heads, batch, "lm")}

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[list[int]]:
        return best_tokens(hidden, heads, batch, "lm")


def token_ranges(code: Encoding, spans: list[tuple[int, int]], characters: int) -> list[tuple[int, int]]:
    """For each range of characters the range of tokens that touch it."""
    ranges = []
    for start, stop in spans:
        first, after = _token_at(code, start, characters), _token_at(code, stop, characters)
        if after < len(code) and code.token_to_chars(after)[0] < stop:  # type: ignore[index]
            after += 1  # it also holds the span's last character
        if ranges and first < ranges[-1][1]:
            first = ranges[-1][1]
        ranges.append((first, after))
    return ranges


def _token_at(code: Encoding, place: int, characters: int) -> int:
    """The first token with a character at `place` or, where the tokenizer drops that one, behind it."""
    for character in range(place, characters):
        token = code.char_to_token(character)
        if token is not None:
            return token
    return len(code)
