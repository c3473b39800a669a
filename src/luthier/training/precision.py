"""Precision: frozen weights and activations in bf16 or fp16, what trains in fp32. Micikevicius et al. 2018, arXiv:1710.03740, section 3.

No autocast: `lowered` puts casts of the trained parameters in their places, so the products run in the low precision and the gradients
arrive in fp32. The casts stay in place until backward is over, as recomputation runs the forward once more then.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.core.frozen import FrozenLinear

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def settle(net: nn.Module, precision: str) -> None:
    """Gives every parameter its precision, in place. A model loaded in float64 stays so under fp32; whole numbers stay as they are."""
    for parameter in net.parameters():
        if parameter.is_floating_point():
            wide = torch.promote_types(parameter.dtype, torch.float32)
            low = wide if precision == "fp32" else DTYPES[precision]
            parameter.data = parameter.data.to(wide if parameter.requires_grad else low)
    for module in net.modules():
        if isinstance(module, FrozenLinear):
            module.dtype = torch.promote_types(module.dtype, torch.float32) if precision == "fp32" else DTYPES[precision]


@contextmanager
def lowered(net: nn.Module, precision: str) -> Iterator[None]:
    """Within, modules see their trained parameters in the low precision."""
    places = [] if precision == "fp32" else list(_trained(net))
    casts: dict[nn.Parameter, Tensor] = {}  # one for each parameter, also where it is shared
    try:
        for module, name, parameter in places:
            if parameter not in casts:
                casts[parameter] = parameter.to(DTYPES[precision])
            module._parameters[name] = casts[parameter]  # type: ignore[assignment]  # as torch.func.functional_call does
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter


def _trained(net: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for module in net.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad and parameter.is_floating_point():
                yield module, name, parameter


@dataclass
class LossScale:
    """The factor on the loss that keeps small fp16 gradients from vanishing: halved on overflow, doubled after `patience` good steps."""

    value: float = 1.0
    good: int = 0
    patience: int = 2000
    smallest: float = 2.0**-14

    @classmethod
    def of(cls, precision: str) -> "LossScale | None":
        return cls(value=2.0**16) if precision == "fp16" else None

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(1.0 / self.value)

    def learn(self, finite: bool) -> None:
        """After a step: whether its gradients were finite."""
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good == self.patience:
            self.value, self.good = self.value * 2, 0
