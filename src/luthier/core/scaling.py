"""Rotary positions beyond the length a model was trained on: other rates for its pairs, and sometimes sharper attention.

Every method gives rates, the angles that pairs turn by from one position to the next, and `sharpness`, by which cos and sin are multiplied.
Orders of operations are those of transformers, to the last bit of float32. B batch, T length, R turned dimensions of a head
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """Positions divided by a factor. Chen et al. 2023, arXiv:2306.15595, eq. 4."""

    kind: Literal["linear"]
    factor: float
    sharpness: ClassVar[float] = 1.0

    def rates(self, exponent_R2: Tensor, theta: float, length_BT: Tensor) -> Tensor:
        return 1.0 / theta**exponent_R2 / self.factor


@dataclass(frozen=True)
class DynamicNTK:
    """A base that grows with the length of the text, from `trained` tokens on. Peng et al. 2023, arXiv:2309.00071, sections 3.1 and 3.3.

    A token's angles are those of its text's length when it is read: what a cache holds keeps them, as in transformers.
    """

    kind: Literal["dynamic"]
    factor: float
    trained: int
    sharpness: ClassVar[float] = 1.0

    def rates(self, exponent_R2: Tensor, theta: float, length_BT: Tensor) -> Tensor:
        width = 2 * len(exponent_R2)
        stretch_BT = self.factor * length_BT.clamp(min=self.trained).double() / self.trained - (self.factor - 1)
        base_BT = theta * stretch_BT ** (width / (width - 2))
        return 1.0 / base_BT.float()[..., None] ** exponent_R2


@dataclass(frozen=True)
class YaRN:
    """Fast pairs as they were, slow ones at 1 / factor, a ramp between; sharper attention. Peng et al. 2023, arXiv:2309.00071, section 3.2.

    fast, slow: turns within `trained` tokens where the ramp begins and ends. attention: the factor of cos and sin; 0 is the paper's
    0.1 ln(factor) + 1 (eq. 22). whole: the ramp's ends are rounded outwards to whole pairs.
    """

    kind: Literal["yarn"]
    factor: float
    trained: int
    fast: float = 32.0
    slow: float = 1.0
    attention: float = 0.0
    whole: bool = True

    @property
    def sharpness(self) -> float:
        return self.attention or mscale(self.factor)

    def rates(self, exponent_R2: Tensor, theta: float, length_BT: Tensor) -> Tensor:
        pairs = len(exponent_R2)
        low, high = (pairs * math.log(self.trained / (turns * 2 * math.pi)) / math.log(theta) for turns in (self.fast, self.slow))
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        ramp_R2 = (torch.arange(pairs, device=exponent_R2.device).float() - low) / (high - low or 0.001)
        kept_R2 = 1 - ramp_R2.clamp(0, 1)
        wave_R2 = theta**exponent_R2
        return 1.0 / (self.factor * wave_R2) * (1 - kept_R2) + 1.0 / wave_R2 * kept_R2


@dataclass(frozen=True)
class Llama3:
    """Pairs of short waves as they were, long ones at 1 / factor, a ramp between. Grattafiori et al. 2024, arXiv:2407.21783 (LLaMA 3.1).

    low, high: how many waves fit into `trained` tokens where the ramp begins and ends.
    """

    kind: Literal["llama3"]
    factor: float
    trained: int
    low: float = 1.0
    high: float = 4.0
    sharpness: ClassVar[float] = 1.0

    def rates(self, exponent_R2: Tensor, theta: float, length_BT: Tensor) -> Tensor:
        rate_R2 = 1.0 / theta**exponent_R2
        waves_R2 = self.trained / (2 * math.pi / rate_R2)
        kept_R2 = ((waves_R2 - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - kept_R2) * rate_R2 / self.factor + kept_R2 * rate_R2


@dataclass(frozen=True)
class LongRoPE:
    """A searched divisor for each pair: one set up to `trained` tokens, another beyond. Ding et al. 2024, arXiv:2402.13753, section 3."""

    kind: Literal["longrope"]
    short: tuple[float, ...]
    long: tuple[float, ...]
    trained: int
    attention: float = 1.0  # the factor of cos and sin

    @property
    def sharpness(self) -> float:
        return self.attention

    def rates(self, exponent_R2: Tensor, theta: float, length_BT: Tensor) -> Tensor:
        short_R2, long_R2 = (torch.tensor(x, device=exponent_R2.device, dtype=torch.float32) for x in (self.short, self.long))
        divisor_BTR = torch.where((length_BT > self.trained)[..., None], long_R2, short_R2)
        return 1.0 / (divisor_BTR * theta**exponent_R2)


Scaling = Linear | DynamicNTK | YaRN | Llama3 | LongRoPE
KINDS = {"linear": Linear, "dynamic": DynamicNTK, "yarn": YaRN, "llama3": Llama3, "longrope": LongRoPE}


def mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's attention factor, 1 / sqrt(t). Peng et al. 2023, arXiv:2309.00071, eq. 22."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def scaling(value: Scaling | dict[str, Any] | None) -> Scaling | None:
    """A preset's {"kind": ..., ...} as what it means."""
    return KINDS[value["kind"]](**value) if isinstance(value, dict) else value
