"""NF4: weights in 4 bits, and the scales of their blocks in 8. Dettmers et al. 2023, arXiv:2305.14314, section 3.

w = book[code] * s over each block of 64 weights, s = max|w|; book: 16 quantiles of N(0, 1) scaled to [-1, 1], one of them 0. Double
quantisation: s - mean(s) in blocks of 256 by the 8-bit dynamic map of Dettmers et al. 2022, arXiv:2110.02861, section 1.3. A weight takes
4 + 8/64 + 32/(64 * 256) = 4.127 bits. Codes, scales and values are bitsandbytes' to the bit, which rounds scales in its own way on a CPU.
N weights, S scales (blocks of 64), M blocks of scales, O outputs, I inputs
"""

import importlib.util
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK, SCALES = 64, 256  # weights that share a scale, scales that share theirs
PIECE = 1 << 18  # bytes turned back at a time: their indices then stay in the processor's cache


@dataclass(frozen=True)
class NF4:
    """A weight (O, I) in 4 bits. Without double quantisation scales_S is float32 and the rest None."""

    codes: Tensor  # uint8 (N / 2,): two codes a byte, the first in the high half
    scales_S: Tensor  # uint8: codes of the dynamic map
    scales_M: Tensor | None  # float32
    mean: Tensor | None  # float32, of all scales
    shape: tuple[int, int]

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in (self.codes, self.scales_S, self.scales_M, self.mean) if part is not None)

    def weight(self) -> Tensor:
        """(O, I) in float32. On a GPU by the kernel of bitsandbytes, where that is installed."""
        if self.codes.is_cuda and _kernels() is not None:
            return by_bitsandbytes(self)
        pairs = _pairs(self.codes.device)
        values = torch.empty(len(self.codes), dtype=torch.int64, device=self.codes.device)
        for codes, place in zip(self.codes.split(PIECE), values.split(PIECE), strict=True):
            torch.index_select(pairs, 0, codes.int(), out=place)
        weights_N, scales_S = values.view(torch.float32)[: math.prod(self.shape)], self.scales()
        whole = len(weights_N) // BLOCK * BLOCK
        weights_N[:whole].view(-1, BLOCK).mul_(scales_S[: whole // BLOCK, None])
        weights_N[whole:].mul_(scales_S[whole // BLOCK :])  # no or one block that is shorter
        return weights_N.view(self.shape)

    def scales(self) -> Tensor:
        """(S,) in float32."""
        if self.scales_M is None or self.mean is None:
            return self.scales_S
        values_S = dynamic_map().to(self.scales_S.device)[self.scales_S.int()]
        return values_S * self.scales_M.repeat_interleave(SCALES)[: len(values_S)] + self.mean


def by_bitsandbytes(packed: NF4) -> Tensor:
    """(O, I) in float32: the same codes and scales handed to bitsandbytes."""
    functional, codes = _kernels(), packed.codes
    assert functional is not None
    inner = None
    if packed.scales_M is not None:
        inner = functional.QuantState(packed.scales_M, blocksize=SCALES, code=dynamic_map().to(codes.device), dtype=torch.float32)
    state = functional.QuantState(
        packed.scales_S, torch.Size(packed.shape), book().to(codes.device), BLOCK, "nf4", torch.float32, packed.mean, inner
    )
    return functional.dequantize_4bit(codes[:, None], state)


@cache
def _kernels() -> Any:
    """bitsandbytes.functional; None where it is not installed."""
    return importlib.import_module("bitsandbytes.functional") if importlib.util.find_spec("bitsandbytes") else None


def quantise(weight_OI: Tensor, double: bool = True) -> NF4:
    """Every weight to the nearest of its block's 16 values; a block of zeros stays zero."""
    weights_N = weight_OI.detach().float().flatten()
    blocks = pad(weights_N, (0, -len(weights_N) % BLOCK)).view(-1, BLOCK)
    scales_S = blocks.abs().amax(1)
    unit = blocks * (1 / scales_S.clamp(min=1e-38))[:, None]
    codes_N = torch.bucketize(unit.flatten()[: len(weights_N)], _between(book()).to(unit.device), out_int32=True).to(torch.uint8)
    codes_N = pad(codes_N, (0, len(codes_N) % 2), value=7)  # 7: zero
    codes = codes_N[::2] << 4 | codes_N[1::2]
    shape = (weight_OI.shape[0], weight_OI.shape[1])
    if not double:
        return NF4(codes, scales_S, None, None, shape)
    mean = scales_S.mean()
    return NF4(codes, *_quantise_scales(scales_S - mean, even=mean.device.type == "cpu"), mean, shape)


def _quantise_scales(values_S: Tensor, even: bool) -> tuple[Tensor, Tensor]:
    """Codes of the dynamic map, and the largest magnitude of each block.

    even: first to the nearest of 65,536 even steps, as bitsandbytes' CPU kernel does and its GPU kernels do not.
    """
    blocks = pad(values_S, (0, -len(values_S) % SCALES)).view(-1, SCALES)
    scales_M = blocks.abs().amax(1)
    unit_S = (blocks * (1 / scales_M)[:, None]).flatten()[: len(values_S)]
    if even:
        unit_S = ((unit_S + 1) * 0.5 * 65535 + 0.5).int() / 65535 * 2 - 1
    codes_S = torch.bucketize(unit_S, _between(dynamic_map()).to(unit_S.device), out_int32=True).to(torch.uint8)
    return codes_S * (scales_M.repeat_interleave(SCALES)[: len(codes_S)] > 0), scales_M  # a block of zeros has code 0


@cache
def book() -> Tensor:
    """The 16 values: quantiles of N(0, 1), evenly spaced from the middle to the outermost, 8 above zero and 7 below, and zero itself."""
    outermost = 0.9677083  # 1 - (1/32 + 1/30) / 2, to the 7 digits of the released code
    above, below = (torch.linspace(outermost, 0.5, count + 1)[:-1].double() for count in (8, 7))
    values = torch.cat([-torch.special.ndtri(below), torch.zeros(1, dtype=torch.float64), torch.special.ndtri(above)])
    values = values.sort().values.float()
    return values / values.max()


@cache
def dynamic_map() -> Tensor:
    """256 values: decades from 1e-6 to 1, each further one with twice as many even steps (their middles), both signs; zero and one."""
    values = [torch.zeros(1), torch.ones(1)]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10 ** (exponent - 6)
        values += [middles, -middles]
    return torch.cat(values).sort().values


def _between(values: Tensor) -> Tensor:
    """Where one value ends and the next begins."""
    return (values[:-1] + values[1:]) / 2


@cache
def _pairs(device: torch.device) -> Tensor:
    """The two float32 values of each of the 256 bytes, as one int64 that is looked up at once."""
    values = book()
    return torch.stack([values.repeat_interleave(16), values.repeat(16)], 1).view(torch.int64).flatten().to(device)
