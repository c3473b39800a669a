"""Low-rank terms around a projection or an embedding. Hu et al. 2021, arXiv:2106.09685, eq. 3.

I input width, O output width, R rank, V vocabulary, D model width
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from luthier.anatomy.around import Adapter, Values
from luthier.anatomy.site import Site
from luthier.core.fan import LowRankTerm


class LowRank(Adapter):
    """h = W x + scale * B A drop(x), B zero at the start."""

    mergeable = True

    def __init__(self, a_RI: Tensor, b_OR: Tensor, scale: float, dropout: float = 0.0):
        super().__init__()
        self.a_RI, self.b_OR = nn.Parameter(a_RI), nn.Parameter(b_OR)
        self.scale, self.dropout = scale, nn.Dropout(dropout)

    @property
    def rank(self) -> int:
        return self.a_RI.shape[0]

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        out = base(x)
        term = F.linear(F.linear(self.dropout(x.to(self.a_RI.dtype)), self.a_RI), self.b_OR)
        return out + (self.scale * term).to(out.dtype)

    def merged(self, current: Values) -> Values:
        weight = current["weight"]
        return {"weight": weight + (self.scale * (self.b_OR @ self.a_RI)).to(weight.dtype)}

    def low_rank(self) -> LowRankTerm | None:
        if self.training and self.dropout.p > 0:
            return None
        return LowRankTerm(self.a_RI, self.b_OR, self.scale)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}"


class LowRankEmbedding(LowRank):
    """The same around an embedding: e = W[i] + factor * scale * B A[:, i], A zero at the start (loralib). factor: what the model multiplies
    its vectors by (Gemma)."""

    def __init__(self, a_RV: Tensor, b_DR: Tensor, scale: float, factor: float = 1.0):
        super().__init__(a_RV, b_DR, scale)
        self.factor = factor

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        out = base(x)
        term = F.linear(F.embedding(x, self.a_RI.T), self.b_OR)
        return out + (self.scale * self.factor * term).to(out.dtype)

    def merged(self, current: Values) -> Values:
        weight = current["weight"]
        return {"weight": weight + (self.scale * (self.b_OR @ self.a_RI).T).to(weight.dtype)}

    def low_rank(self) -> LowRankTerm | None:
        return None


def around(site: Site, a_RI: Tensor, b_OR: Tensor, scale: float, dropout: float = 0.0) -> LowRank:
    """The kind of low-rank term that fits a place. For an embedding A is (R, V) and B is (D, R)."""
    if isinstance(site.module, nn.Embedding):
        return LowRankEmbedding(a_RI, b_OR, scale, float(getattr(site.module, "embed_scale", 1.0)))
    return LowRank(a_RI, b_OR, scale, dropout)
