"""A learnt factor on every element of a projection's output or input. Liu et al. 2022, arXiv:2205.05638, section 3.3.

O output width, I input width
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from luthier.anatomy.around import Adapter, Values


class ScaleOut(Adapter):
    """l * (W x + b), l one at the start."""

    mergeable = True

    def __init__(self, scale_O: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale_O)

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        out = base(x)
        return out * self.scale.to(out.dtype)

    def merged(self, current: Values) -> Values:
        scaled = {"weight": current["weight"] * self.scale[:, None]}
        if "bias" in current:
            scaled["bias"] = current["bias"] * self.scale
        return {name: value.to(current[name].dtype) for name, value in scaled.items()}


class ScaleIn(Adapter):
    """W (l * x) + b, l one at the start."""

    mergeable = True

    def __init__(self, scale_I: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale_I)

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return base(x * self.scale.to(x.dtype))

    def merged(self, current: Values) -> Values:
        return {"weight": (current["weight"] * self.scale).to(current["weight"].dtype)}


def ones(size: int, like: Tensor) -> Tensor:
    return torch.ones(size, device=like.device, dtype=like.dtype if like.is_floating_point() else torch.float32)
