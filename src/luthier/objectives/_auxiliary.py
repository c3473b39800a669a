"""The auxiliary language-model loss beside a task's own. Radford et al. 2018, "Improving Language Understanding", section 3.2, eq. 5."""

from dataclasses import replace
from itertools import accumulate

from torch import Tensor, nn

from luthier.objectives._batch import Batch, Example, Term
from luthier.objectives._language import refuse_encoder, token_loss
from luthier.sources.model import Model

TERM = "lm"


def check_auxiliary(weight: float, model: Model, kind: str) -> None:
    if weight < 0:
        raise ValueError(f"objective {kind}: lm_weight={weight} is negative; 0 leaves the language-model loss out")
    if weight:
        refuse_encoder(model, f"{kind} with lm_weight={weight}")
        if model.encoder_decoder:
            raise ValueError(f"objective {kind} with lm_weight={weight} is for decoders alone, and {model.source} has an encoder; take 0")
        if "lm" not in model.net.heads:
            raise ValueError(f"objective {kind} with lm_weight={weight} needs a language-model head, and {model.source} has none")


def with_next_tokens(example: Example) -> Example:
    """The same example that also predicts each token of its documents from those before it."""
    ends = list(accumulate(example.documents))
    starts = [0, *ends[:-1]]
    at = [i for start, end in zip(starts, ends, strict=True) for i in range(start, end - 1)]
    return replace(example, at=example.at | {TERM: at}, labels=example.labels | {TERM: [example.ids[i + 1] for i in at]})


def auxiliary(hidden: Tensor, heads: nn.ModuleDict, batch: Batch, weight: float) -> dict[str, Term]:
    """The term, or none where its weight is 0."""
    return {TERM: replace(token_loss(hidden, heads, batch, TERM), weight=weight)} if weight else {}
