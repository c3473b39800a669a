"""Perplexity and bits per byte of held-out text. Jelinek et al. 1977.

With nll the summed negative log-likelihood in nats: loss = nll / tokens, perplexity = exp(loss), bits per byte = nll / (ln 2 * bytes of the
text as UTF-8). Perplexity depends on the tokenizer, bits per byte does not: models with different vocabularies are compared by it.
Sums are taken over all documents first, so every token weighs the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.evaluation._text import paired


@dataclass(frozen=True)
class Perplexity:
    """How surprised the model is by held-out text; predictions are nats per document, references its (tokens, bytes)."""

    of: ClassVar[str] = "likelihood"
    verified: ClassVar[str] = "transformers' causal loss; closed form for a uniform model"

    def score(self, predictions: Sequence[float], references: Sequence[tuple[int, int]]) -> dict[str, float]:
        pairs = paired(predictions, references)
        nats = math.fsum(nll for nll, _ in pairs)
        tokens, size_bytes = (sum(counts[i] for _, counts in pairs) for i in (0, 1))
        if not tokens:
            raise ValueError("no token to score: every row of the held-out data is without a learnt token")
        # a text of end tokens alone has no bytes
        bits_per_byte = nats / (math.log(2) * size_bytes) if size_bytes else math.nan
        return {"loss": nats / tokens, "perplexity": exp(nats / tokens), "bits_per_byte": bits_per_byte}


def exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
