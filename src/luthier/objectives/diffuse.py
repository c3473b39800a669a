"""Masked diffusion: hide each token with a probability t drawn anew for every text, and find what was hidden. Nie et al. 2025, arXiv:2502.09992.

Equation 3: for t uniform in (0, 1], the cross-entropy of the hidden tokens over t, summed, bounds the text's -log p from above; divided
here by its tokens. As in LLaDA's code t is (1 - 0.001) u + 0.001. In a conversation only what the assistant says is hidden (equation 5).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from luthier.data.stream import Sample
from luthier.objectives._batch import Batch, Example, Reading, Term, quoted, wide
from luthier.objectives._language import best_tokens, refuse_two_ways, token_loss
from luthier.objectives._objective import Objective
from luthier.objectives._sentence import framed
from luthier.sources.model import Model

LEAST = 1e-3  # the smallest t: a weight of 1000


@dataclass(frozen=True)
class Diffuse(Objective):
    """A text of more than data.length tokens is cut into documents of that length, a conversation at its end. What is hidden follows from
    (seed, epoch, row) alone."""

    short: float = 0.01  # share of the documents cut to a length drawn at random, so that the model learns short ones too (section 2.2)
    fill: int = 0  # answers are filled with end tokens, which are learnt, to a multiple of so many tokens

    needs: ClassVar[tuple[str, ...]] = ("text",)
    verified: ClassVar[str] = "the paper's equation by hand; its expectation; cross-entropy of torch"

    def __post_init__(self) -> None:
        if not 0 <= self.short <= 1 or self.fill < 0:
            raise ValueError(f"objective diffuse needs 0 <= short <= 1 and fill >= 0, not short={self.short}, fill={self.fill}")

    def check(self, model: Model) -> None:
        super().check(model)
        refuse_two_ways(model, self.kind)
        if model.net.causal or "lm" not in model.net.heads:
            raise ValueError(f"objective diffuse needs a model that sees later tokens and predicts tokens; {model.source} does not")
        if model.tokenizer is None or model.tokenizer.mask is None:
            raise ValueError(f"objective diffuse needs a mask token, and the tokenizer of {model.source} has none")
        if model.net.fills not in (None, model.tokenizer.mask):
            raise ValueError(
                f"objective diffuse hides tokens behind id {model.tokenizer.mask}, the tokenizer's mask, and {model.source} fills in "
                f"id {model.net.fills}; set model.mask, or take the tokenizer that belongs to it"
            )

    def read(self, sample: Sample, model: Model) -> Reading:
        if "messages" not in sample.row:
            return Reading(sample, list(self.fields(sample)))
        if model.template is None:
            raise ValueError(f"{model.source} has no chat template; name one: data.template: human_assistant (or alpaca, vicuna, a file)")
        try:
            text, spans = model.template.spans(sample.row["messages"])
        except ValueError as error:
            raise ValueError(f"{error}: {quoted(sample)}") from None
        return Reading(sample, [text], spans)

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        assert model.tokenizer is not None
        start, end = model.tokenizer.frame()
        rng, ids = reading.sample.rng("diffuse"), reading.ids[0]
        if reading.spans:
            documents = [self._answers(ids, reading.ranges, end, length)]
        else:
            _, _, room = framed(model.tokenizer, length)
            texts = [start + ids[i : i + room] + end for i in range(0, len(ids), room)]
            documents = [(text, list(range(len(start), len(text)))) for text in texts]
        found = []
        for tokens, candidates in documents:
            if not reading.spans and rng.random() < self.short:
                tokens = tokens[: rng.randint(len(start) + 1, len(tokens))]
                candidates = [i for i in candidates if i < len(tokens)]
            if candidates:
                rate = (1 - LEAST) * rng.random() + LEAST
                at = [i for i in candidates if rng.random() < rate]
                found.append(hide(tokens, at, rate, len(candidates), model.tokenizer.mask))  # type: ignore[arg-type]
        return found

    def _answers(self, ids: list[int], ranges: list[tuple[int, int]], end: list[int], length: int) -> tuple[list[int], list[int]]:
        """A conversation's tokens and the places of its answers, end tokens behind the last one among them."""
        places = [i for start, stop in ranges for i in range(start, stop) if i < length]
        missing = -len(ids) % self.fill if self.fill and end and len(ids) < length else 0
        ids = (ids + end[-1:] * missing)[:length]
        return ids, places + list(range(len(ids) - missing, len(ids))) if places and missing else places

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        rates = [1 / example.note for example in batch.examples for _ in example.at["diffuse"]]
        term = token_loss(hidden, heads, batch, "diffuse", share_M=wide(hidden).new_tensor(rates))
        return {"diffuse": Term(term.sum, batch.counts()["diffuse"])}

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[list[int]]:
        return best_tokens(hidden, heads, batch, "diffuse")


def hide(ids: list[int], at: list[int], rate: float, count: int, mask: int) -> Example:
    """An example in which masks stand at these places. count: how many tokens might have been hidden; the loss is divided by it."""
    hidden, labels = list(ids), [ids[i] for i in at]
    for i in at:
        hidden[i] = mask
    return Example(hidden, {"diffuse": at}, {"diffuse": labels}, reference=labels, note=rate, sizes={"diffuse": count})
