"""Weights in 8 bits with one scale for each output. The plain form of Dettmers et al. 2022, arXiv:2208.07339, section 2.

w = q * s with s = max|w| / 127 over each output's inputs. Products run in bfloat16, for which torch has a CPU kernel that reads the 8 bits
directly; a token then reads a quarter of what float32 reads. N rows, I inputs, O outputs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 4096  # outputs turned back at a time where there is no kernel: 4096 x 4096 bfloat16 are 32 MB


@dataclass(frozen=True)
class Int8:
    """A weight in 8 bits: q_OI int8, scale_O bfloat16."""

    q_OI: Tensor
    scale_O: Tensor

    @property
    def bytes(self) -> int:
        return self.q_OI.numel() + 2 * self.scale_O.numel()

    def weight(self) -> Tensor:
        """(O, I) in float32."""
        return self.q_OI.float() * self.scale_O.float()[:, None]


def quantise(weight_OI: Tensor) -> Int8:
    """Round each output's weights to 255 steps; an output of zeros stays zero."""
    scale_O = (weight_OI.float().abs().amax(1) / 127).to(torch.bfloat16)
    scale_O = torch.where(scale_O == 0, torch.ones_like(scale_O), scale_O)
    q_OI = (weight_OI.float() / scale_O.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return Int8(q_OI.contiguous(), scale_O)


def int8_product(x_NI: Tensor, weight: Int8) -> Tensor:
    """x W^T in the dtype of x, (N, O)."""
    x = x_NI.to(torch.bfloat16)
    if x.device.type == "cpu":
        return torch._weight_int8pack_mm(x, weight.q_OI, weight.scale_O).to(x_NI.dtype)
    return _by_blocks(x, weight).to(x_NI.dtype)


def _by_blocks(x_NI: Tensor, weight: Int8) -> Tensor:
    """The same where torch has no kernel: a block of outputs is turned back at a time."""
    parts = [F.linear(x_NI, q_OI.to(x_NI.dtype)) for q_OI in weight.q_OI.split(BLOCK)]
    return torch.cat(parts, -1) * weight.scale_O.to(x_NI.dtype)
