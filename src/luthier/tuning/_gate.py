"""Gates over what a method adds, seen from what it reads. Mao et al. 2022, arXiv:2110.07577, section 3.2.

B rows, T tokens, D width
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from luthier.anatomy.around import Adapter
from luthier.anatomy.call import Leading
from luthier.core.attention import Prefix
from luthier.core.text import TEXT
from luthier.tuning._bottleneck import Bottleneck, Seen
from luthier.tuning._lowrank import LowRank


class Gate(nn.Module):
    """sigmoid(w x + b) of every token, (B, T, 1); or its mean over the text. N(0, 0.02^2), bias zero."""

    def __init__(self, width: int, like: Tensor, mean: bool):
        super().__init__()
        self.out, self.mean = nn.Linear(width, 1, device=like.device, dtype=like.dtype), mean
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BT1 = torch.sigmoid(self.out(x_BTD.to(self.out.weight.dtype))).to(x_BTD.dtype)
        return _mean(gate_BT1) if self.mean else gate_BT1


def _mean(gate_BT1: Tensor) -> Tensor:
    """Over the real tokens of each text, or of each document of a packed row."""
    text = TEXT.get()
    lengths = text.lengths if text is not None else None
    if lengths and len(lengths) > 1 and sum(lengths) == gate_BT1.shape[1]:
        return torch.cat([part.mean(1, keepdim=True).expand_as(part) for part in gate_BT1.split(list(lengths), 1)], 1)
    real_BT = text.real_BT if text is not None else None
    if real_BT is None or real_BT.shape != gate_BT1.shape[:2]:
        return gate_BT1.mean(1, keepdim=True)
    weight_BT1 = real_BT.to(gate_BT1)[..., None]
    return (gate_BT1 * weight_BT1).sum(1, keepdim=True) / weight_BT1.sum(1, keepdim=True).clamp(min=1)


class Gated(Adapter):
    """base(x) + gate * what the inner adapter adds. seen: notes what comes in, for the gate of a prefix."""

    def __init__(self, inner: LowRank | Bottleneck, gate: Gate, seen: Seen | None = None):
        super().__init__()
        self.inner, self.gate, self.seen = inner, gate, seen
        self.paired = inner.paired or seen is not None

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.seen is not None:
            self.seen.note(x)
        y = base(x)
        if isinstance(self.inner, LowRank):
            return y + (self.gate(x) * self.inner.added(x)).to(y.dtype)
        read = self.inner.read(y)
        return y + (self.gate(read) * self.inner.beside(read)).to(y.dtype)


class GatedLead(Leading):
    """Columns before the keys, of which each query sees as much as its gate lets through."""

    paired = True

    def __init__(self, inner: Leading, gate: Gate, seen: Seen):
        super().__init__()
        self.inner, self.open, self.seen = inner, gate, seen

    def columns(self) -> Prefix:
        return self.inner.columns()

    def gate(self) -> Tensor:
        return self.open(self.seen.take())
