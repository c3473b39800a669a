"""The feed-forward sublayer, plain and gated.

D width, F hidden width
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core import native
from luthier.core.fan import fan
from luthier.core.recall import by_hand, remember

Act = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Act] = {
    "gelu": F.gelu,  # by the error function
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": F.tanh,
}


def dropout(rate: float) -> nn.Module:
    """Dropout, or nothing at all where the rate is 0."""
    return nn.Dropout(rate) if rate else nn.Identity()


class FeedForward(nn.Module):
    """down(act(up x)). Vaswani et al. 2017, arXiv:1706.03762, eq. 2."""

    fans = ("up",)  # the projections that share the input

    def __init__(self, width: int, hidden: int, act: str, bias: bool = True, drop: float = 0.0):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias), nn.Linear(hidden, width, bias)
        self.act, self.dropout = ACTIVATIONS[act], dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        (up,) = fan((self.up,), x)
        (down,) = fan((self.down,), self.dropout(activate(self.act, up)))
        return down


class GatedFeedForward(nn.Module):
    """down(act(gate x) * up x). Shazeer 2020, arXiv:2002.05202, eq. 6."""

    fans = ("gate", "up")

    def __init__(self, width: int, hidden: int, act: str, bias: bool = True, drop: float = 0.0):
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias), nn.Linear(width, hidden, bias)
        self.down = nn.Linear(hidden, width, bias)
        self.act, self.dropout = ACTIVATIONS[act], dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = fan((self.gate, self.up), x)
        (down,) = fan((self.down,), self.dropout(gated(self.act, gate, up)))
        return down


def activate(act: Act, x: Tensor) -> Tensor:
    """act(x), which backward may make again from x."""
    if not by_hand(x):
        return act(x)
    source = x.detach()
    return remember(act(x), lambda: act(source))


def gated(act: Act, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) * up, which backward may make again from the two."""
    if not by_hand(gate, up):
        return act(gate) * up if torch.is_grad_enabled() else act(gate).mul_(up)
    left, right = gate.detach(), up.detach()
    if act is F.silu:
        return remember(_SwiGLU.apply(gate, up), lambda: _swiglu(left, right))
    return remember(act(gate) * up, lambda: act(left) * right)


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up, keeping only gate and up; leaves the two gradients side by side, as one product takes them in."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor):  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        return _swiglu(gate, up)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        gate, up = ctx.saved_tensors
        if native.usable(gate, up, grad):
            return native.swiglu_backward(gate, up, grad)
        both = grad.new_empty(*grad.shape[:-1], 2 * grad.shape[-1])
        grad_gate, grad_up = both.chunk(2, -1)
        torch.mul(grad, up, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_up, gate, grad_input=grad_gate)
        torch.mul(grad, F.silu(gate), out=grad_up)
        return grad_gate, grad_up


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return native.swiglu(gate, up) if native.usable(gate, up) else F.silu(gate).mul_(up)
