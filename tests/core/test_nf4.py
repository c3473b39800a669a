"""NF4 against bitsandbytes, and the frozen projection against its plain twin."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.core import nf4
from luthier.core.frozen import FrozenLinear
from luthier.core.nf4 import NF4
from luthier.core.quantise import quantise as int8

SHAPES = [(1, 64), (33, 64), (96, 192), (3, 5), (7, 9), (20, 96), (600, 128)]  # whole blocks, a shorter last one, an odd number of codes


@pytest.fixture(scope="module")
def theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its import does not find
        return pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is the oracle: pip install bitsandbytes")


def weights(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    weight = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if shape == SHAPES[-1]:  # blocks of zeros, of ones, and many of one scale
        weight[3], weight[5:9], weight[100:] = 0, 1, 0.5
    return weight.to(dtype)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_scales_and_weights_are_those_of_bitsandbytes(theirs, shape, dtype, double):
    weight = weights(shape, dtype)
    codes, state = theirs.quantize_4bit(weight, blocksize=64, compress_statistics=double, quant_type="nf4")
    ours = nf4.quantise(weight, double)
    pairs = [(ours.codes, codes.flatten()), (ours.scales_S, state.absmax)]
    pairs += [(ours.scales_M, state.state2.absmax), (ours.mean, state.offset)] if double else []
    for mine, their in pairs:
        torch.testing.assert_close(mine, their, rtol=0, atol=0)
    if shape[1] % 64 == 0:  # where a row ends within a block, their CPU kernel takes another block's scale: its error doubles
        torch.testing.assert_close(ours.weight().to(dtype), theirs.dequantize_4bit(codes, state), rtol=0, atol=0)


@pytest.mark.parametrize("double", [True, False])
def test_the_codes_handed_to_bitsandbytes_give_the_same_weight(theirs, double: bool):
    packed = nf4.quantise(torch.randn(96, 320), double)
    torch.testing.assert_close(nf4.by_bitsandbytes(packed), packed.weight(), rtol=0, atol=0)


def test_the_books_are_those_of_bitsandbytes(theirs):
    assert torch.equal(nf4.book(), theirs.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(nf4.dynamic_map(), theirs.create_dynamic_map())


def test_the_book_is_the_paper_s():
    """Appendix E."""
    paper = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
    paper += [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
    assert nf4.book().tolist() == paper + [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def test_where_there_is_no_cpu_kernel_scales_take_the_nearest_code(theirs):
    """As their CUDA kernel does. By hand: the distance to all 256 values."""
    values_S = torch.randn(20000, generator=torch.Generator().manual_seed(1)) / 3
    unit = torch.cat([part / part.abs().max() for part in values_S.split(256)])
    codes_S, scales_M = nf4._quantise_scales(values_S, even=False)
    assert torch.equal(codes_S.long(), (unit[:, None] - nf4.dynamic_map()).abs().argmin(1))
    even_S, state = theirs.quantize_blockwise(values_S, blocksize=256)
    assert torch.equal(scales_M, state.absmax) and torch.equal(nf4._quantise_scales(values_S, even=True)[0], even_S)
    assert 0 < (codes_S != even_S).sum() < 100


def test_a_weight_takes_4_127_bits():
    weight = nf4.quantise(torch.randn(1024, 1024))
    parts = [weight.codes, weight.scales_S, weight.scales_M, weight.mean]
    assert weight.bytes == sum(part.untyped_storage().nbytes() for part in parts if part is not None)
    assert round(8 * weight.bytes / 2**20, 3) == 4.127
    assert 8 * nf4.quantise(torch.randn(1024, 1024), double=False).bytes / 2**20 == 4.5
    module = FrozenLinear(nn.Linear(1024, 1024, bias=False), nf4.quantise, transposed=False)
    assert sum(buffer.nbytes for buffer in module.buffers()) == weight.bytes and not list(module.parameters())


def test_the_error_on_normal_weights_is_the_expected_one():
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    assert abs(float((nf4.quantise(weight).weight() - weight).abs().mean()) - 0.0724) < 0.001


def linear(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(32, 48, bias)


def conv1d() -> nn.Module:
    torch.manual_seed(0)
    return Conv1D(48, 32)


MAKES = [linear, lambda: linear(False), conv1d]


@pytest.mark.parametrize("quantise", [nf4.quantise, int8], ids=["nf4", "int8"])
@pytest.mark.parametrize("make", MAKES, ids=["linear", "without bias", "conv1d"])
def test_a_frozen_projection_is_its_plain_twin_with_the_weight_turned_back(make, quantise):
    module = FrozenLinear(make(), quantise, transposed=make is conv1d)
    plain = module.plain()
    assert type(plain) is type(make()) and module.weight.shape == make().weight.shape
    assert not torch.equal(plain.weight, make().weight) and torch.allclose(plain.weight, make().weight, atol=0.1)
    x, other = (torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1), requires_grad=True) for _ in range(2))
    torch.testing.assert_close(module(x), plain(other))
    module(x).square().sum().backward()
    plain(other).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


def test_nothing_is_kept_for_backward():
    module = FrozenLinear(linear(False), nf4.quantise, transposed=False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value), lambda value: value):
        module(torch.randn(5, 32, requires_grad=True))
    assert kept == []


def test_it_computes_in_the_precision_of_its_input_and_keeps_its_scales():
    module = FrozenLinear(linear(), nf4.quantise, transposed=False)
    weight = module.weight
    low = copy.deepcopy(module).to(torch.bfloat16)
    assert low.weight.dtype == torch.bfloat16 and low.bias.dtype == torch.bfloat16
    assert isinstance(low.packed, NF4) and torch.equal(low.packed.weight(), weight)
    x = torch.randn(5, 32)
    out = low(x.bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, F.linear(x.bfloat16(), weight.bfloat16()) + low.bias)
    torch.testing.assert_close(low.to(torch.float32).weight, weight)


def test_its_codes_are_in_its_state():
    module, other = (FrozenLinear(make(), nf4.quantise, transposed=False) for make in (linear, lambda: nn.Linear(32, 48)))
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other.weight, module.weight, rtol=0, atol=0)
