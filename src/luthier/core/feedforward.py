"""The feed-forward sublayer, plain and gated.

D width, F hidden width
"""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.fan import fan

Act = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Act] = {
    "gelu": F.gelu,  # by the error function
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": F.tanh,
}


class FeedForward(nn.Module):
    """down(act(up x)). Vaswani et al. 2017, arXiv:1706.03762, eq. 2."""

    def __init__(self, width: int, hidden: int, act: str, bias: bool = True, dropout: float = 0.0):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias), nn.Linear(hidden, width, bias)
        self.act, self.dropout = ACTIVATIONS[act], nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        (up,) = fan((self.up,), x)
        (down,) = fan((self.down,), self.dropout(self.act(up)))
        return down


class GatedFeedForward(nn.Module):
    """down(act(gate x) * up x). Shazeer 2020, arXiv:2002.05202, eq. 6."""

    def __init__(self, width: int, hidden: int, act: str, bias: bool = True, dropout: float = 0.0):
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias), nn.Linear(width, hidden, bias)
        self.down = nn.Linear(hidden, width, bias)
        self.act, self.dropout = ACTIVATIONS[act], nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = fan((self.gate, self.up), x)
        (down,) = fan((self.down,), self.dropout(self.act(gate) * up))
        return down
