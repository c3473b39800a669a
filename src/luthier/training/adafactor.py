"""Adafactor: second moments of a matrix kept as one row and one column. Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5.

The rate comes from the schedule; with `relative` it is multiplied with the root mean square of the parameter (algorithm 4, line 3).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

SQUARE_FLOOR = 1e-30  # the paper's eps_1
SIZE_FLOOR = 1e-3  # eps_2: a parameter of zeros moves all the same
THRESHOLD = 1.0  # d
DECAY = -0.8  # beta_2 at step t is 1 - t ** DECAY


class Adafactor(Optimizer):
    """Memory of rows + columns numbers for a matrix, of all its elements for a vector."""

    def __init__(self, params: Iterable[Any], rate: float, relative: bool = False) -> None:
        super().__init__(params, {"lr": rate, "relative": relative, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        assert closure is None, "the loop calls backward itself"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return None

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        memory = self.state[parameter]
        memory["step"] = memory.get("step", torch.zeros(())) + 1  # a tensor, so that it is saved like the others
        beta = 1 - float(memory["step"]) ** DECAY
        assert parameter.grad is not None
        update = _whiten(parameter.grad, memory, beta)
        update /= (_size(update) / THRESHOLD).clamp(min=1.0)
        rate = group["lr"] * _size(parameter).clamp(min=SIZE_FLOOR) if group["relative"] else group["lr"]
        parameter.mul_(1 - rate * group["weight_decay"]).sub_(update * rate)


def _whiten(grad: Tensor, memory: dict[str, Tensor], beta: float) -> Tensor:
    """The gradient over the root of its running mean square, which for a matrix is the outer product of two vectors."""
    square = grad**2 + SQUARE_FLOOR
    if grad.dim() < 2:
        return grad * _mean(memory, "squares", square, beta).rsqrt()
    rows = _mean(memory, "rows", square.mean(-1), beta)
    columns = _mean(memory, "columns", square.mean(-2), beta)
    row_scale = (rows / rows.mean(-1, keepdim=True)).rsqrt().unsqueeze(-1)
    return grad * (row_scale * columns.rsqrt().unsqueeze(-2))


def _mean(memory: dict[str, Tensor], name: str, value: Tensor, beta: float) -> Tensor:
    if name not in memory:
        memory[name] = torch.zeros_like(value)
    return memory[name].mul_(beta).add_(value, alpha=1 - beta)


def _size(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
