"""The blockwise cross-entropy against torch's, with every gradient."""

import pytest
import torch
import torch.nn.functional as F

from luthier.core import loss
from luthier.core.loss import linear_cross_entropy


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_cross_entropy_of_the_product_with_its_gradients(bias, monkeypatch):
    monkeypatch.setattr(loss, "BLOCK", 7)
    hidden, weight = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (23, 11))
    b = torch.randn(11, dtype=torch.float64, requires_grad=True) if bias else None
    label = torch.randint(0, 11, (23,))
    inputs = [hidden, weight, *([b] if b is not None else [])]
    got, want = linear_cross_entropy(hidden, weight, b, label), F.cross_entropy(F.linear(hidden, weight, b), label, reduction="sum")
    torch.testing.assert_close(got, want)
    for mine, theirs in zip(torch.autograd.grad(got * 0.3, inputs), torch.autograd.grad(want * 0.3, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[300.0, -300.0]], requires_grad=True)
    out = linear_cross_entropy(hidden, torch.eye(2), None, torch.tensor([1]))
    assert out.item() == 600.0
    out.backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[1.0, -1.0]]))


def test_bfloat16_sums_in_float32():
    hidden, weight = torch.randn(900, 8).bfloat16(), torch.randn(50, 8).bfloat16()
    label = torch.randint(0, 50, (900,))
    want = F.cross_entropy((hidden @ weight.T).float(), label, reduction="sum")
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, None, label), want, rtol=1e-5, atol=0)


def test_no_positions_give_zero():
    assert linear_cross_entropy(torch.zeros(0, 4), torch.zeros(9, 4), None, torch.zeros(0, dtype=torch.long)).item() == 0.0
