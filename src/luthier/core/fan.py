"""Projections that share an input, in one product, with their low-rank terms. Hu et al. 2021, arXiv:2106.09685, eq. 3.

N rows (any leading shape), I input width, O output width, R rank
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LowRankTerm:
    """scale * B A x around a frozen projection."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float


class Adapted(nn.Module, ABC):
    """A projection with adapters around it, which may state itself as low-rank terms."""

    @abstractmethod
    def low_rank(self) -> tuple[nn.Linear, list[LowRankTerm]] | None:
        """The base and its terms, or None: call the module itself (dropout is on, another kind of adapter is active)."""


def fan(modules: tuple[nn.Module, ...], x: Tensor) -> tuple[Tensor, ...]:
    """[module(x) for module in modules], each (..., O_i)."""
    return tuple(module(x) for module in modules)
