"""The compiled operators against torch's own in float64, on edges of their ranges, and against themselves on several threads."""

import math
import subprocess
import sys
import zlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core import native
from luthier.core.feedforward import gated
from luthier.core.loss import linear_cross_entropy
from luthier.core.norm import RMSNorm
from luthier.core.position import Rotary, rotate

FLOOR = {torch.float32: 2e-6, torch.bfloat16: 8e-3}  # relative; bfloat16's own step is 2^-8
DTYPES = list(FLOOR)
pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here, or LUTHIER_NATIVE=0: torch's operators do the work")


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def near(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    scale = theirs.abs().max().item()
    assert ours.dtype == dtype
    assert (ours.double() - theirs).abs().max().item() <= FLOOR[dtype] * scale


def gradients(function, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The output and the gradients of all inputs, where the output's gradient is its own place's sine."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = function(*leaves)
    weights = torch.arange(y.numel(), dtype=torch.float64).sin().view(y.shape).to(y.dtype)
    return (y.detach(), *torch.autograd.grad((y * weights).sum(), leaves))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [2, 7, 64, 577])
def test_rms_norm_and_its_gradient_equal_torchs_in_float64(dtype: torch.dtype, width: int):
    x, norm = random(3, 5, width, dtype=dtype), RMSNorm(width, 1e-5)
    norm.weight.data = random(width, dtype=dtype, seed=1)
    norm.weight.requires_grad_(False)
    theirs = gradients(lambda a: F.rms_norm(a, (width,), norm.weight.double(), 1e-5), x.double())
    for ours, wanted in zip(gradients(norm, x), theirs, strict=True):
        near(ours, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [7, 128, 577])
def test_the_gradient_of_an_rms_norms_weight_equals_torchs_in_float64(dtype: torch.dtype, width: int):
    x, weight, norm = random(3, 50, width, dtype=dtype), random(width, dtype=dtype, seed=1), RMSNorm(width, 1e-5)

    def ours(w: Tensor, a: Tensor) -> Tensor:
        norm.weight = w  # type: ignore[assignment]
        return norm(a)

    del norm.weight
    theirs = gradients(lambda w, a: F.rms_norm(a, (width,), w, 1e-5), weight.double(), x.double())
    for got, wanted in zip(gradients(ours, weight, x), theirs, strict=True):
        near(got, wanted, dtype)
    norm.weight = weight  # type: ignore[assignment]
    leaf = weight.clone().requires_grad_()
    norm.weight = leaf  # type: ignore[assignment]
    norm(x).sum().backward()  # the weight alone: nothing below it learns
    assert leaf.grad is not None
    near(leaf.grad, F.rms_norm(x.double(), (width,), None, 1e-5).sum((0, 1)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 33, 256])
def test_swiglu_of_columns_of_one_product_equals_torchs_in_float64(dtype: torch.dtype, hidden: int):
    both = 4 * random(2, 9, 2 * hidden, dtype=dtype)
    ours = gradients(lambda a: gated(F.silu, *a.chunk(2, -1)), both)
    theirs = gradients(lambda a: F.silu(a.chunk(2, -1)[0]) * a.chunk(2, -1)[1], both.double())
    for got, wanted in zip(ours, theirs, strict=True):
        near(got, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shares", [False, True])
def test_cross_entropy_equals_torchs_in_float64(dtype: torch.dtype, shares: bool):
    hidden, weight, bias = random(300, 24, dtype=dtype), random(1000, 24, dtype=dtype, seed=1), random(1000, dtype=dtype, seed=2)
    label = torch.randint(1000, (300,), generator=torch.Generator().manual_seed(3))
    share = torch.rand(300, generator=torch.Generator().manual_seed(4)) if shares else None

    def theirs(h: Tensor) -> Tensor:
        logits = (h.to(dtype) @ weight.T + bias).double() if dtype == torch.bfloat16 else h @ weight.double().T + bias.double()
        losses = F.cross_entropy(logits, label, reduction="none")
        return losses.sum() if share is None else (losses * share.double()).sum()

    ours = gradients(lambda h: linear_cross_entropy(h, weight, bias, label, share), hidden)
    for got, wanted in zip(ours, gradients(theirs, hidden.double()), strict=True):
        near(got, wanted, got.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("turned", [8, 16])
def test_rotation_of_heads_in_a_product_equals_complex_numbers(dtype: torch.dtype, turned: int):
    x = random(2, 5, 3, 16, dtype=dtype).transpose(1, 2)  # (B, H, T, K) as heads of one product lie
    rotation = Rotary(16, turned=turned)(torch.arange(5)[None].expand(2, -1) + 3, dtype)

    def theirs(a: Tensor) -> Tensor:
        half = turned // 2
        turn = torch.complex(rotation.cos.double(), rotation.sin.double())[:, None]
        made = torch.complex(a[..., :half], a[..., half:turned]) * turn
        return torch.cat([made.real, made.imag, a[..., turned:]], -1)

    for got, wanted in zip(gradients(lambda a: rotate(a, rotation), x), gradients(theirs, x.double()), strict=True):
        near(got, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_softmax_over_what_a_query_sees_and_its_gradient_equal_torchs_in_float64(dtype: torch.dtype, causal: bool):
    scores, grad = 3 * random(2, 10, 37, dtype=dtype), random(2, 10, 37, dtype=dtype, seed=1)  # 5 queries of 2 heads, 32 keys before them
    wide = scores.double() * 0.3
    if causal:
        late = torch.arange(37)[None] > 32 + torch.arange(10)[:, None] % 5
        wide = wide.masked_fill(late, float("-inf"))
    theirs = wide.softmax(-1)
    ours = native.softmax_(scores.clone(), 0.3, *((5, 32) if causal else ()))
    near(ours, theirs, dtype)
    assert torch.equal(ours == 0, theirs == 0)
    back = 0.3 * theirs * (grad.double() - (theirs * grad.double()).sum(-1, keepdim=True))
    near(native.softmax_backward_(grad.clone(), theirs.to(dtype), 0.3), back, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("causal", "prefix"), [(False, 0), (True, 0), (False, 3), (True, 3)])
def test_a_bias_inside_the_softmax_and_its_gradient_equal_torchs_in_float64(dtype: torch.dtype, causal: bool, prefix: int):
    scores, grad = 3 * random(2, 10, 37, dtype=dtype), random(2, 10, 37, dtype=dtype, seed=1)  # 5 queries of 4 heads, two to a group
    whole = random(4, 9, 40, dtype=dtype, seed=2)
    bias = whole[:, 2:7]  # columns beyond the keys that are seen are not read
    added = F.pad(bias[..., : 37 - prefix].double(), (prefix, 0)).view(2, 10, 37)
    wide = scores.double() * 0.3 + added
    if causal:
        wide = wide.masked_fill(torch.arange(37)[None] > 32 + torch.arange(10)[:, None] % 5, float("-inf"))
    theirs = wide.softmax(-1)
    near(native.softmax_(scores.clone(), 0.3, *((5, 32) if causal else (0, 0)), bias, prefix), theirs, dtype)
    back = theirs * (grad.double() - (theirs * grad.double()).sum(-1, keepdim=True))
    given = torch.zeros(4, 9, 40)
    near(native.softmax_backward_(grad.clone(), theirs.to(dtype), 0.3, given[:, 2:7], prefix), 0.3 * back, dtype)
    wanted = F.pad(back.view(4, 5, 37)[..., prefix:], (0, 3 + prefix, 2, 2))
    assert (given.double() - wanted).abs().max() <= FLOOR[dtype] * wanted.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_gates_saturate_and_what_is_no_number_stays_none(dtype: torch.dtype):
    gate = torch.tensor([[-1e30, -200.0, -88.5, 0.0, 88.5, 200.0, 1e30, float("inf"), float("nan")]]).to(dtype)
    made = native.swiglu(gate, torch.ones_like(gate))[0].float()
    assert made[:3].abs().max() < 1e-30
    assert torch.equal(made[3:8], gate[0, 3:8].float())
    assert made[8].isnan()
    worst = native.cross_entropy_(torch.tensor([[float("nan"), 1.0]]).to(dtype), torch.tensor([1]), None, True)
    assert worst.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_far_apart_give_exact_zeros_and_finite_losses(dtype: torch.dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [float("-inf"), 0.0, 0.0]]).to(dtype)
    loss = native.cross_entropy_(logits, torch.tensor([0, 1]), None, True)
    assert loss.tolist() == pytest.approx([0.0, math.log(2)])
    assert logits[0].tolist() == [0.0, 0.0, 0.0]
    assert logits[1].tolist() == [0.0, -0.5, 0.5]


@pytest.mark.parametrize("length", [0, 5, 1 << 16, (1 << 16) + 1, (1 << 16) + 47, 300_007])
def test_the_checksum_is_zlibs_wherever_it_begins_and_ends(length: int):
    data = memoryview(random(length + 3, dtype=torch.float32).mul(1e9).int().view(torch.uint8).numpy().data)[3 : 3 + length]
    for start in (0, 1, 0xDEADBEEF):
        assert native.crc32(data, start) == zlib.crc32(data, start)


def test_threads_change_no_bit():
    x, weight = random(100, 64, dtype=torch.float32), torch.rand(64)
    before = torch.get_num_threads()
    try:
        made = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made.append((native.rms_norm(x, weight, 1e-6), native.swiglu(x, x), native.rms_norm_backward(x, weight, x, 1e-6)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_denormal_numbers_keep_their_meaning_beside_the_library():
    assert (torch.tensor([1e-40]) * 1.0).item() > 0  # -ffast-math would have turned them off for the whole process


def test_without_the_library_everything_goes_through_torchs_operators():
    code = "from luthier.core import native; import torch; print(native.usable(torch.ones(2)))"
    told = subprocess.run([sys.executable, "-c", code], env={"LUTHIER_NATIVE": "0"}, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
