"""A frozen projection whose weight is kept quantised. Dettmers et al. 2023, arXiv:2305.14314, eq. 5.

y = x W^T + b with W turned back for the product and forgotten; backward turns it back once more, for the gradient of x alone.
O outputs, I inputs
"""

import copy
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.nf4 import NF4
from luthier.core.quantise import Int8


class FrozenLinear(nn.Module):
    """Stands where a Linear or a Conv1D (weight (I, O)) stood. Its `weight` is made anew whenever it is asked for, in `dtype`."""

    def __init__(self, module: nn.Module, quantise: Callable[[Tensor], NF4 | Int8], transposed: bool):
        super().__init__()
        weight = module.get_parameter("weight")
        packed = quantise(weight.T if transposed else weight)
        parts = {part.name: getattr(packed, part.name) for part in fields(packed)}
        for name, value in parts.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value)
        self.packing = partial(type(packed), **{name: value for name, value in parts.items() if not isinstance(value, Tensor)})
        self.out_features, self.in_features = (weight.T if transposed else weight).shape
        self.transposed, self.dtype = transposed, weight.dtype
        self.bias = module.bias
        self._emptied = (_without_weight(module),)  # in a tuple: no part of the model
        self.train(module.training)

    @property
    def packed(self) -> NF4 | Int8:
        return self.packing(**self._buffers)

    @property
    def weight(self) -> Tensor:
        """As the module that stood here stored it."""
        weight_OI = self.turned_back(self.dtype)
        return weight_OI.T if self.transposed else weight_OI

    def turned_back(self, dtype: torch.dtype) -> Tensor:
        """(O, I)."""
        return self.packed.weight().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        y: Any = _Product.apply(x, self)
        return y if self.bias is None else y + self.bias

    def plain(self) -> nn.Module:
        """The module that stood here, with the weight as it is after quantisation."""
        module = copy.copy(self._emptied[0])
        module._parameters = module._parameters | {"weight": nn.Parameter(self.weight.contiguous(), requires_grad=False), "bias": self.bias}
        return module.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenLinear":
        """.to(dtype) is about the weight that is made; the scales keep their precision."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            assert value is not None
            if self._buffers[name].dtype != value.dtype:  # type: ignore[union-attr]
                self._buffers[name] = value.to(self._buffers[name].device)  # type: ignore[union-attr]
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.packing.func.__name__}"


class _Product(torch.autograd.Function):
    """x W^T. What is kept for backward is the module, whose codes exist anyway."""

    @staticmethod
    def forward(ctx, x, module):  # type: ignore[override]
        ctx.module = module
        return F.linear(x, module.turned_back(x.dtype))

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[override]
        return grads[0] @ ctx.module.turned_back(grads[0].dtype), None


def _without_weight(module: nn.Module) -> nn.Module:
    empty = copy.copy(module)
    empty._parameters = {name: None if name == "weight" else value for name, value in module._parameters.items()}
    return empty
