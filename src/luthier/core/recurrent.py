"""A transformer that reads long texts segment by segment. Dai et al. 2019, arXiv:1901.02860, section 3.2.

B batch, T length, M tokens in memory, D width
"""

from typing import Any

import torch
from torch import Tensor, nn

from luthier.core import feedforward
from luthier.core.attention import Mask, unpack_index
from luthier.core.block import Context
from luthier.core.cache import Cache
from luthier.core.relative import Relative, distances, padded
from luthier.core.text import TEXT, Text
from luthier.core.transformer import Transformer
from luthier.core.virtual import insert


class Recurrent(Transformer):
    """Blocks of RelativeAttention. A cache is the memory: what it was given before, the last `memory` tokens of it.

    same: every query looks back equally far. clamp: distances beyond it are alike (0: none are). dropout falls on the vectors of the
    distances and on the last states.
    """

    def __init__(self, *parts: Any, memory: int, same: bool = False, clamp: int = 0, dropout: float = 0.0, **others: Any):
        super().__init__(*parts, **others)
        self.memory, self.same, self.clamp, self.dropout = memory, same, clamp, feedforward.dropout(dropout)

    def hidden(self, ids, mask=None, *, lengths=None, types=None, positions=None, cache=None, prompts=None, allow=None) -> Tensor:  # type: ignore[override]
        if refused := [name for name, given in (("positions", positions), ("prompts", prompts)) if given is not None]:
            raise ValueError(f"{type(self.config).__name__} knows distances only, so it takes no {' and no '.join(refused)}")
        if lengths is not None:  # as rows: scores depend on what stands at a distance, so documents share nothing
            self.check(ids, lengths, cache)
            place_BT = unpack_index(lengths, ids.device)
            real_BT = place_BT >= 0
            rows = [None if given is None else given[0][place_BT.clamp(min=0)] for given in (ids, types)]
            return self.hidden(rows[0], real_BT, types=rows[1], allow=allow)[real_BT][None]
        x, context = self.entered(ids, mask, types, cache, allow)
        for x in self.layers(x, context):  # noqa: B007, B020  (the last one)
            pass
        return self.dropout(context.taken(self.norm(x)))

    def states(self, ids: Tensor, mask: Tensor | None = None, **inputs: Any) -> list[Tensor]:
        raise ValueError(f"{type(self.config).__name__} gives its last states only")

    def entered(
        self, ids: Tensor, mask: Tensor | None, types: Tensor | None, cache: Cache | None, allow_BTT: Tensor | None = None
    ) -> tuple[Tensor, Context]:
        """The embedded input and what all blocks share; allow (B or 1, T, T) or (B or 1, 1, T, T): who sees whom in this segment."""
        inserted = None
        if self.virtual is not None and (cache is None or cache.length == 0):
            inserted = insert(ids, mask, self.virtual, self.virtual_after)
        if inserted is not None:
            if allow_BTT is not None:
                raise ValueError("virtual tokens stand before the text, so masks of one's own do not fit: leave them out")
            ids, mask, types = inserted.ids, inserted.mask, None if types is None else inserted.spread(types, 0)
            if cache is not None:
                cache.notes["virtual"] = inserted.virtual
        keys, total = None if mask is None else mask.bool(), ids.shape[1]
        real = torch.ones_like(ids, dtype=torch.bool) if keys is None else keys
        TEXT.set(Text((real.cumsum(1) - 1).clamp(min=0), keys))
        if cache is not None:
            cache.begin(ids.shape[0], ids.shape[1], keys)
            total = min(cache.length, self.memory + ids.shape[1])
            keys = None if cache.keys is None else cache.keys[:, -total:]
        if allow_BTT is not None:
            allow_BTT = ~padded(~allow_BTT.view(-1, *allow_BTT.shape[-2:]), total)[:, None]
        x = self.embed(ids, torch.zeros(1, 1, dtype=torch.long, device=ids.device), None)
        last = -1 if self.causal else -ids.shape[1]
        far = self.dropout(distances(total - 1, last, self.width, self.clamp, x))
        window = self.memory if self.same and self.causal else None
        mask_ = Mask(self.causal, window, keys=keys, allow=allow_BTT)
        return x, Context(mask_, None, Relative(far, self._others(types, total)), cache=cache, inserted=inserted)  # type: ignore[arg-type]

    def _others(self, types_BT: Tensor | None, keys: int) -> Tensor | None:
        """(B, T, S) bool, True where the key is of another segment; the memory is of segment 0."""
        if types_BT is None:
            return None
        before = types_BT.new_zeros(types_BT.shape[0], keys - types_BT.shape[1])
        return types_BT[:, :, None] != torch.cat([before, types_BT], 1)[:, None]


def initialise_relative(net: nn.Module, std: float = 0.02) -> None:
    """Normal vectors added to the queries, as the weights are."""
    for name, parameter in net.named_parameters():
        if name.endswith(("attn.content", "attn.distance", "attn.segment", "attn.segments")):
            nn.init.normal_(parameter, std=std)
