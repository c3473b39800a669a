"""GGUF block formats to plain numbers, written from the layouts in ggml's ggml-common.h (blocks of 32, K-blocks of 256).

Shapes: N blocks, 32 or 256 values a block. Arithmetic is float32 with separate roundings, so results are bit-equal to ggml's.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

CHUNK = 1 << 14  # blocks at a time: intermediates stay in the processor's cache


def dequantize(raw: Tensor, kind: str, dtype: torch.dtype = torch.float32, pool: ThreadPoolExecutor | None = None) -> Tensor:
    """Flat bytes (uint8) of one of KINDS to flat values of `dtype`; plain formats of the wanted dtype are returned as views."""
    if kind in PLAIN:
        return raw.view(PLAIN[kind]).to(dtype)
    values, size, fill = KINDS[kind]
    blocks = raw.view(-1, size)
    out = torch.empty(len(blocks), values, dtype=dtype)

    def part(start: int) -> None:
        piece, target = blocks[start : start + CHUNK], out[start : start + CHUNK]
        if dtype == torch.float32:
            fill(piece, target)
        else:
            exact = torch.empty(len(piece), values)
            fill(piece, exact)
            target.copy_(exact)

    starts = range(0, len(blocks), CHUNK)
    if pool is None or len(starts) == 1:
        for start in starts:
            part(start)
    else:
        list(pool.map(part, starts))
    return out.view(-1)


def half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of every block, as float32 (N, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def q8_0(blocks: Tensor, out: Tensor) -> None:
    torch.mul(blocks[:, 2:].view(torch.int8), half(blocks, 0), out=out)


def q4_0(blocks: Tensor, out: Tensor) -> None:
    out[:, :16], out[:, 16:] = blocks[:, 2:] & 15, blocks[:, 2:] >> 4
    out.sub_(8).mul_(half(blocks, 0))


def q4_1(blocks: Tensor, out: Tensor) -> None:
    out[:, :16], out[:, 16:] = blocks[:, 4:] & 15, blocks[:, 4:] >> 4
    out.mul_(half(blocks, 0)).add_(half(blocks, 2))


def q4_k(blocks: Tensor, out: Tensor) -> None:
    """Eight groups of 32: d * scale_g * q - dmin * min_g; scales and mins have six bits, packed in 12 bytes."""
    low, mid, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scale = torch.cat([low & 63, (high & 15) | ((low >> 2) & 48)], 1)
    least = torch.cat([mid & 63, (high >> 4) | ((mid >> 2) & 48)], 1)
    packed, groups = blocks[:, 16:].view(-1, 4, 32), out.view(-1, 4, 2, 32)
    groups[:, :, 0], groups[:, :, 1] = packed & 15, packed >> 4
    groups = out.view(-1, 8, 32)
    groups.mul_((half(blocks, 0) * scale).unsqueeze(-1)).sub_((half(blocks, 2) * least).unsqueeze(-1))


def q6_k(blocks: Tensor, out: Tensor) -> None:
    """Sixteen groups of 16: d * scale_g * (q - 32); q is four low bits and two high bits stored apart."""
    low, high = blocks[:, :128].view(-1, 2, 1, 64), blocks[:, 128:192].view(-1, 2, 1, 32)
    nibbles = torch.cat([low & 15, low >> 4], 2).view(-1, 2, 4, 32)
    pairs = torch.cat([(high >> shift) & 3 for shift in (0, 2, 4, 6)], 2)
    out.view(-1, 2, 4, 32).copy_(nibbles | (pairs << 4))
    scale = half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    out.view(-1, 16, 16).sub_(32).mul_(scale.unsqueeze(-1))


PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KINDS: dict[str, tuple[int, int, Callable[[Tensor, Tensor], None]]] = {  # values and bytes a block
    "Q8_0": (32, 34, q8_0),
    "Q4_0": (32, 18, q4_0),
    "Q4_1": (32, 20, q4_1),
    "Q4_K": (256, 144, q4_k),
    "Q6_K": (256, 210, q6_k),
}
