"""Shared products, their low-rank terms and what is made again in backward, against plain autograd."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from luthier.core import nf4
from luthier.core.fan import Adapted, LowRankTerm, bare, fan, fuse
from luthier.core.feedforward import FeedForward, GatedFeedForward
from luthier.core.frozen import FrozenLinear
from luthier.core.norm import RMSNorm
from luthier.core.quantise import quantise as int8


class Terms(Adapted):
    """A projection with two low-rank terms, and the plain way of computing it."""

    def __init__(self, base: nn.Linear, ranks=(3, 2), dtype=torch.float64):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.ParameterList(torch.randn(r, base.in_features, dtype=dtype) for r in ranks)
        self.b = nn.ParameterList(torch.randn(base.out_features, r, dtype=dtype) for r in ranks)

    def low_rank(self):
        return self.base, [LowRankTerm(a, b, 0.5 + i) for i, (a, b) in enumerate(zip(self.a, self.b, strict=True))]

    def forward(self, x):
        return self.base(x) + sum((0.5 + i) * (x @ a.T @ b.T) for i, (a, b) in enumerate(zip(self.a, self.b, strict=True)))


def build(bias: bool, fused: bool, dtype=torch.float64) -> tuple[nn.Module, ...]:
    torch.manual_seed(0)
    linears = [nn.Linear(6, out, bias, dtype=dtype).requires_grad_(False) for out in (8, 4, 4)]
    if fused:
        fuse(linears)
    return Terms(linears[0]), linears[1], Terms(linears[2], (4,))


def results(modules, outs, x) -> list[torch.Tensor]:
    """The outputs, and the gradients of x and of what trains from a loss that weighs each output otherwise."""
    trained, chance = [p for m in modules for p in m.parameters() if p.requires_grad], torch.Generator().manual_seed(1)
    loss = sum((out * torch.randn(out.shape, dtype=out.dtype, generator=chance)).sum() for out in outs)
    return [*outs, *torch.autograd.grad(loss, [x, *trained])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_a_fan_is_its_modules_and_has_their_gradients(bias, fused):
    modules = build(bias, fused)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    for got, want in zip(results(modules, fan(modules, x), x), results(modules, [m(x) for m in modules], x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def quantised(module: nn.Module, quantise) -> nn.Module:
    """The same over a quantised base; the module itself gets the weight as it is after that."""
    base = FrozenLinear(copy.deepcopy(bare(module)), quantise, transposed=False)
    bare(module).weight.data = base.weight  # type: ignore[union-attr]
    if not isinstance(module, Terms):
        return base
    twin = copy.deepcopy(module)
    twin.base = base  # type: ignore[assignment]
    return twin


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("quantise", [nf4.quantise, int8], ids=["nf4", "int8"])
def test_a_fan_of_quantised_projections_is_that_of_the_weights_turned_back(bias: bool, quantise):
    modules = build(bias, False)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    frozen = tuple(quantised(module, quantise) for module in modules)
    for got, want in zip(results(frozen, fan(frozen, x), x), results(modules, [m(x) for m in modules], x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    assert all("Fan" in out.grad_fn.next_functions[0][0].name() for out in fan(frozen, x))  # one product  # type: ignore[union-attr]


class Gained(Terms):
    """A projection with one term and a gain on both, not on the bias: DoRA's form."""

    def __init__(self, base: nn.Linear, zero: bool):
        super().__init__(base, (3,))
        self.gain = nn.Parameter(torch.randn(base.out_features, dtype=torch.float64))
        if zero:
            self.gain.data[1] = 0.0

    def low_rank(self):
        return self.base, [LowRankTerm(self.a[0], self.b[0], 0.5, self.gain)]

    def forward(self, x):
        product = x @ self.base.weight.T + 0.5 * (x @ self.a[0].T @ self.b[0].T)
        return product * self.gain + (0 if self.base.bias is None else self.base.bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("zero", [True, False])
def test_a_gain_is_on_the_product_and_its_term_and_has_its_gradient_also_where_it_is_zero(bias, zero):
    torch.manual_seed(0)
    linears = [nn.Linear(6, out, bias, dtype=torch.float64).requires_grad_(False) for out in (8, 4, 4)]
    fuse(linears)
    modules = linears[0], Gained(linears[1], zero), Terms(linears[2], (4,))
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    for got, want in zip(results(modules, fan(modules, x), x), results(modules, [m(x) for m in modules], x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


def test_fusing_keeps_values_and_lays_them_in_one_storage():
    linears = [nn.Linear(6, out) for out in (8, 4, 4)]
    before = [linear.weight.clone() for linear in linears]
    fuse(linears)
    assert len({linear.weight.untyped_storage().data_ptr() for linear in linears}) == 1
    assert all(torch.equal(linear.weight, old) for linear, old in zip(linears, before, strict=True))
    storage = linears[0].weight.untyped_storage().data_ptr()
    fuse(linears)
    assert linears[0].weight.untyped_storage().data_ptr() == storage, "fusing twice copies nothing"


def test_a_trainable_base_gets_its_gradient():
    linears = (nn.Linear(6, 8), nn.Linear(6, 4))
    fuse(linears)
    x = torch.randn(3, 6)
    sum(out.sum() for out in fan(linears, x)).backward()
    torch.testing.assert_close(linears[0].weight.grad, x.sum(0).expand(8, 6))


def test_a_hook_on_a_projection_is_still_called():
    linears = (nn.Linear(6, 8).requires_grad_(False), nn.Linear(6, 4).requires_grad_(False))
    fuse(linears)
    calls = []
    linears[0].register_forward_hook(lambda *a: calls.append(1))
    fan(linears, torch.randn(3, 6))
    assert calls == [1]


def test_float32_factors_around_a_bfloat16_base_get_float32_gradients():
    modules = build(False, True, torch.bfloat16)
    for m in modules:
        for p in m.parameters():
            if p.requires_grad:
                p.data = p.data.float()
    out = fan(modules, torch.randn(5, 6, dtype=torch.bfloat16, requires_grad=True))
    sum(o.float().sum() for o in out).backward()
    assert out[0].dtype == torch.bfloat16 and all(p.grad.dtype == torch.float32 for p in modules[0].parameters() if p.requires_grad)


def test_rms_norm_equals_torchs_and_its_gradients_pass_the_numerical_check():
    norm = RMSNorm(6, 1e-3).double()
    norm.weight.data = torch.randn(6, dtype=torch.float64)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (6,), norm.weight, 1e-3))
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(norm, {"weight": w}, x), (x, norm.weight))


@pytest.mark.parametrize("kind", ["plain", "gated"])
@pytest.mark.parametrize("act", ["silu", "gelu", "relu"])
def test_what_is_made_again_in_backward_gives_plain_autograds_gradients(kind, act):
    """norm -> products -> activation -> product, all with recipes, against the same written out."""
    torch.manual_seed(0)
    ffn = (GatedFeedForward if kind == "gated" else FeedForward)(6, 10, act, bias=False).double().requires_grad_(False)
    norm = RMSNorm(6, 1e-5).double().requires_grad_(False)
    for name in ("up", "down", *(["gate"] if kind == "gated" else [])):
        setattr(ffn, name, Terms(getattr(ffn, name)))
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    factors = [p for p in ffn.parameters() if p.requires_grad]
    function = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}[act]

    def written_out(x):
        y = F.rms_norm(x, (6,), norm.weight, 1e-5)
        inner = function(ffn.gate(y)) * ffn.up(y) if kind == "gated" else function(ffn.up(y))
        return ffn.down(inner)

    weight = torch.randn(7, 6, dtype=torch.float64)
    results = [[out, *torch.autograd.grad((out * weight).sum(), [x, *factors])] for out in (ffn(norm(x)), written_out(x))]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
