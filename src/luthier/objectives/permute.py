"""Permutation language modelling: tokens found in a random order, each from all that come before it there. Yang et al. 2019, arXiv:1906.08237.

Section 2.2: a token's query knows its place and the tokens before it in the order, wherever those stand. Section 2.3: only the last tokens
of the order are predicted, about one of `share`; the others come first and all of it may look at them. Section 2.6: the predicted tokens are
spans of 1 to `longest`, a span of L somewhere within the next L * share tokens.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from luthier.core.cache import Cache
from luthier.core.reader import left_padded
from luthier.core.transformer import Net
from luthier.data.stream import Sample
from luthier.models.xlnet import TwoStreams
from luthier.objectives._batch import Batch, Example, Reading, Term
from luthier.objectives._language import best_tokens, token_loss
from luthier.objectives._objective import Objective
from luthier.objectives._sentence import framed
from luthier.sources.model import Model


class Order(NamedTuple):
    """Of one document: which places are predicted, first to last, and the tokens of its text that stand before it."""

    predicted: list[int]
    before: list[int]


@dataclass(frozen=True)
class Permute(Objective):
    """A text of more than data.length tokens is cut into documents of that length. The order follows from (seed, epoch, row) alone."""

    share: int = 6  # one token of so many is predicted; K in the paper
    longest: int = 5  # tokens of a predicted span
    memory: int = 0  # tokens of the text before a document that it may look at, without a gradient into them (section 2.4)

    needs: ClassVar[tuple[str, ...]] = ("text",)
    verified: ClassVar[str] = (
        "the masks of transformers' collator; every order of a short text as often as any other; torch's cross-entropy"
    )

    def __post_init__(self) -> None:
        if self.share < 1 or self.longest < 1 or self.memory < 0:
            raise ValueError(f"objective permute needs share >= 1, longest >= 1 and memory >= 0, not {self}")

    def check(self, model: Model) -> None:
        super().check(model)
        if not isinstance(model.net, TwoStreams) or "lm" not in model.net.heads:
            raise ValueError(f"objective permute is for xlnet with its language-model head (lm: true), and {model.source} is not that")

    def read(self, sample: Sample, model: Model) -> Reading:
        return Reading(sample, list(self.fields(sample)))

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        assert model.tokenizer is not None
        start, end, room = framed(model.tokenizer, length)
        ids, rng, found = reading.ids[0], reading.sample.rng("permute"), []
        for i in range(0, len(ids), room):
            text = ids[i : i + room]
            order = [len(start) + place for place in drawn(len(text), self.share, self.longest, rng)]
            whole = [*start, *text, *end]
            labels = [whole[place] for place in order]
            note = Order(order, ids[max(0, i - self.memory) : i])
            found.append(Example(whole, {"permute": order}, {"permute": labels}, reference=labels, note=note))
        return found

    def forward(self, net: Net, batch: Batch) -> Tensor:
        """The queries' states at the predicted places; (1, N, D), 0 elsewhere."""
        device = batch.ids.device
        orders: list[Order] = [example.note for example in batch.examples]
        texts, longest = batch.ids[0].split(list(batch.lengths)), max(batch.lengths)
        ids_BT, allow_BTT = (
            batch.ids.new_zeros(len(texts), longest),
            torch.stack([allowed(o.predicted, longest) for o in orders]).to(device),
        )
        real_BT = torch.arange(longest, device=device) < torch.tensor(batch.lengths, device=device)[:, None]
        ids_BT[real_BT] = batch.ids[0]
        counts = [len(order.predicted) for order in orders]
        targets_BN = nn.utils.rnn.pad_sequence([torch.tensor(order.predicted) for order in orders], batch_first=True).to(device)
        inputs: dict[str, Any] = {"allow": allow_BTT, "targets": targets_BN}
        if any(order.before for order in orders):
            inputs["cache"] = self._remembered(net, orders, device)
        states_BND = net.hidden(ids_BT, None if real_BT.all() and "cache" not in inputs else real_BT, **inputs)
        found_MD = torch.cat([states[:count] for states, count in zip(states_BND, counts, strict=True)])
        return found_MD.new_zeros(batch.tokens, found_MD.shape[1]).index_copy(0, batch.at["permute"], found_MD)[None]

    @torch.no_grad()
    def _remembered(self, net: Net, orders: Sequence[Order], device: torch.device) -> Cache:
        """What the layers say of the tokens before each document."""
        cache = Cache(len(net.order))  # type: ignore[arg-type]
        ids_BT, mask_BT = left_padded([order.before for order in orders], device)
        net.hidden(ids_BT, mask_BT, cache=cache)
        return cache

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        return {"permute": token_loss(hidden, heads, batch, "permute")}

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[list[int]]:
        return best_tokens(hidden, heads, batch, "permute")


def drawn(length: int, share: int, longest: int, rng: random.Random) -> list[int]:
    """The places that are predicted, in a random order; of a text too short for a span to fall into it, one."""
    places, here = [], 0
    while here < length:
        span = rng.randint(1, longest)
        start = here + rng.randint(0, span * (share - 1))
        places += range(start, min(start + span, length))
        here += span * share
    places = places or [rng.randrange(length)]
    rng.shuffle(places)
    return places


def allowed(order: Sequence[int], length: int) -> Tensor:
    """(T, T) bool: whom a place looks at. All see what is not predicted; a predicted token is seen by those behind it in the order."""
    rank_T = torch.full((length,), -1)
    rank_T[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
    return (rank_T < 0)[None] | (rank_T[None] < rank_T[:, None])
