"""Two language models in one: each word from those before it, and from those behind it. Peters et al. 2018, arXiv:1802.05365, section 3.1.

The mean of both directions' cross-entropies, per word; they share the reading of words and the softmax. For their 793,471 words the authors
sampled 8,192 of them for each direction of a step (`sampled`); perplexity is always over the whole vocabulary. Every document begins from
nothing, where the authors carried states over from one batch to the next.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from luthier.data.stream import Sample
from luthier.objectives._batch import Batch, Example, Reading, Term
from luthier.objectives._language import best_tokens, token_loss
from luthier.objectives._objective import Objective
from luthier.sources.model import Model

WAYS = ("forward", "backward")


@dataclass(frozen=True)
class BiLM(Objective):
    """A text of more than data.length words is cut into documents of that length. Perplexity is that of both directions together."""

    sampled: int = 0  # words drawn for the softmax of a step, frequent ones (low ids) more often; 0: all of them

    needs: ClassVar[tuple[str, ...]] = ("text",)
    learns: ClassVar[str] = "two tokens of text"
    verified: ClassVar[str] = "torch's cross-entropy of both halves; sampled: TensorFlow's formulas in numpy, and its expectation"

    def __post_init__(self) -> None:
        if self.sampled < 0:
            raise ValueError(f"sampled={self.sampled} must be at least 0; 0 is a softmax over all words")

    def check(self, model: Model) -> None:
        super().check(model)
        if model.net.directions != 2 or "lm" not in model.net.heads:
            lacks = "reads in one direction" if model.net.directions != 2 else "has no softmax over words (vocab: 0)"
            raise ValueError(f"objective bilm is for elmo with a softmax over its tokenizer's words, and {model.source} {lacks}")
        head: Any = model.net.heads["lm"]
        if self.sampled * 2 > head.out.out_features:
            raise ValueError(
                f"sampled={self.sampled} must be at most half of the {head.out.out_features} words of {model.source}; 0 is a softmax over all"
            )

    def read(self, sample: Sample, model: Model) -> Reading:
        return Reading(sample, list(self.fields(sample)))

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        assert model.tokenizer is not None
        start, end = model.tokenizer.frame()
        ids = start + reading.ids[0] + end
        return [_document(ids[i : i + length]) for i in range(0, len(ids), length) if len(ids[i : i + length]) > 1]

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        sampled = self.sampled if heads.training else 0
        found = {way: token_loss(half, heads, batch, way, sampled=sampled) for way, half in zip(WAYS, hidden.chunk(2, -1), strict=True)}
        return {way: Term(term.sum, term.count, 0.5) for way, term in found.items()}

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[list[int]]:
        """Of each document the likeliest next words, then the likeliest words before."""
        ways = [best_tokens(half, heads, batch, way) for way, half in zip(WAYS, hidden.chunk(2, -1), strict=True)]
        return [forward + backward for forward, backward in zip(*ways, strict=True)]


def _document(ids: list[int]) -> Example:
    count = len(ids)
    at = {"forward": list(range(count - 1)), "backward": list(range(1, count))}
    return Example(ids, at, {"forward": ids[1:], "backward": ids[:-1]}, reference=ids[1:] + ids[:-1])
