"""Attention by content and distance, over a memory of earlier segments. Dai et al. 2019, arXiv:1901.02860, section 3.3 and appendix B.

B batch, T queries, S keys (those in memory come first), M of them in memory, L distances, D width, H heads, K head width
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.attention import Attend, Mask, attend
from luthier.core.cache import Cache
from luthier.core.fan import fan


class Relative(NamedTuple):
    """What all layers share: vectors of the distances, falling one by one from S - 1; which keys are of another segment than the query."""

    distance_LD: Tensor
    other_BTS: Tensor | None = None


def distances(first: int, last: int, width: int, clamp: int, like: Tensor) -> Tensor:
    """(L, D) sines, then cosines, of the distances first, first - 1, ..., last; beyond `clamp` (0: none) they are alike.

    Angles are float32 whatever the model's dtype, as the published models were trained.
    """
    distance_L = torch.arange(first, last - 1, -1, device=like.device).float()
    if clamp:
        distance_L = distance_L.clamp(-clamp, clamp)
    rate = 1 / 10_000 ** (torch.arange(0, width, 2, device=like.device).float() / width)
    angle = distance_L[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], -1).to(like.dtype)


def shift(score_BHTL: Tensor, keys: int) -> Tensor:
    """From scores of distances to those of keys, (B, H, T, S): query i finds key j at place T - 1 - i + j."""
    queries, length = score_BHTL.shape[-2:]
    flat = score_BHTL.flatten(-2)[..., queries - 1 : queries - 1 + queries * (length - 1)]
    return flat.unflatten(-1, (queries, length - 1))[..., :keys]


class RelativeAttention(nn.Module):
    """Scores ((q + u) k + (q + v) r) * scale, r a projection of the distance's vector; with segments also (q + s) e, e one of two vectors.

    memory: so many earlier tokens are looked at, without a gradient into them.
    """

    fans = ("q", "k", "v")

    def __init__(self, width: int, heads: int, head_width: int, memory: int, segments: bool = False, dropout: float = 0.0):
        super().__init__()
        self.heads, self.head_width, self.memory, self.dropout = heads, head_width, memory, dropout
        self.q, self.k, self.v, self.r = (nn.Linear(width, heads * head_width, bias=False) for _ in range(4))
        self.o = nn.Linear(heads * head_width, width, bias=False)
        self.content, self.distance = (nn.Parameter(torch.zeros(heads, head_width)) for _ in range(2))
        self.segment = nn.Parameter(torch.zeros(heads, head_width)) if segments else None
        self.segments = nn.Parameter(torch.zeros(2, heads, head_width)) if segments else None  # of the same segment, of another
        self.attend: Attend = attend

    def forward(
        self,
        x_BTD: Tensor,
        mask: Mask,
        rotation: None = None,
        relative: Relative | None = None,
        memory_BSD: Tensor | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """memory_BSD: the keys and values come from there (a query stream's from the content)."""
        assert relative is not None and rotation is None
        q, k, v = self._projected(x_BTD, memory_BSD, cache, layer)
        r_HLK = self.r(relative.distance_LD).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        scale = self.head_width**-0.5
        bias = shift((q + self.distance[:, None]) @ r_HLK.mT, k.shape[2]) * scale
        if relative.other_BTS is not None and self.segments is not None and self.segment is not None:
            same, other = ((q + self.segment[:, None]) @ self.segments.permute(1, 2, 0)).mul(scale).unbind(-1)
            bias = bias + torch.where(relative.other_BTS[:, None], other[..., None], same[..., None])
        y = self.attend(q + self.content[:, None], k, v, mask, bias, scale, self.dropout if self.training else 0.0)
        (out,) = fan((self.o,), y.transpose(1, 2).flatten(2))
        return out

    def _projected(self, x: Tensor, memory: Tensor | None, cache: Cache | None, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, T, K) and twice (B, H, S, K). While gradients are kept a cache holds states, which each step projects anew; else keys."""
        if memory is None and cache is None:
            q, k, v = fan((self.q, self.k, self.v), x)
        elif memory is None and cache is not None and not torch.is_grad_enabled():
            q, k, v = (self._heads(y) for y in fan((self.q, self.k, self.v), x))
            kept = min(cache.length, self.memory + x.shape[1])
            k, v = (y[:, :, -kept:] for y in cache.update(layer, k, v))
            return q, k, v
        else:
            source = memory if cache is None else cache.recall(layer, x, self.memory)
            assert source is not None
            (q,), (k, v) = fan((self.q,), x), fan((self.k, self.v), source)
        return self._heads(q), self._heads(k), self._heads(v)

    def _heads(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)


def padded(rows: Tensor, keys: int) -> Tensor:
    """(B, T, M + T) of what holds between the T tokens themselves: False towards the memory."""
    return F.pad(rows, (keys - rows.shape[-1], 0))
