"""Dequantised values are the gguf package's, bit for bit."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from luthier.sources._gguf_header import BLOCKS, TYPES
from luthier.sources._quants import CHUNK, KINDS, PLAIN, dequantize


def random_blocks(kind: str, blocks: int) -> np.ndarray:
    """Random bytes, with scales that are finite numbers."""
    generator = np.random.default_rng(0)
    raw = generator.integers(0, 256, (blocks, BLOCKS[kind][1]), dtype=np.uint8)
    scales = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q6_K": (208,)}[kind]
    for at in scales:
        raw[:, at : at + 2] = generator.normal(0, 1, (blocks, 1)).astype(np.float16).view(np.uint8)
    return raw


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [1, 3, CHUNK + 5])
def test_blocks_equal_the_gguf_package(kind: str, blocks: int):
    if BLOCKS[kind][0] == 256:
        blocks = min(blocks, 3000)
    raw = random_blocks(kind, blocks)
    wanted = gguf.quants.dequantize(raw, Kind[kind])
    given = dequantize(torch.from_numpy(raw).view(-1), kind)
    assert torch.equal(given, torch.from_numpy(wanted).view(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_other_types_are_the_float32_values_rounded_once(kind: str):
    raw = torch.from_numpy(random_blocks(kind, 50)).view(-1)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(dequantize(raw, kind, dtype), dequantize(raw, kind).to(dtype))


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_formats_are_read_as_they_are(kind: str):
    values = torch.randn(64).to(PLAIN[kind])
    raw = values.view(torch.uint8)
    assert torch.equal(dequantize(raw, kind, PLAIN[kind]), values)
    assert dequantize(raw, kind, PLAIN[kind]).data_ptr() == values.data_ptr()  # no copy


def test_block_sizes_are_those_of_the_format():
    for kind, (values, size) in BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[Kind[kind]] == (values, size)
    assert {number: name for number, name in TYPES.items() if name != Kind(number).name} == {}
