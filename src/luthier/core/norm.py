"""Norms. LayerNorm is torch's; RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4."""

import torch
from torch import Tensor, nn

from luthier.core import native
from luthier.core.recall import by_hand, remember


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; no mean is taken away, no bias added."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            wide = _widened(x)
            return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)
        if not by_hand(x, self.weight):
            return _rms_norm(x, self.weight, self.eps)
        source, weight, eps = x.detach(), self.weight.detach(), self.eps
        return remember(_RMSNorm.apply(x, self.weight, eps), lambda: _rms_norm(source, weight, eps))


class _RMSNorm(torch.autograd.Function):
    """Keeps only its input: torch's own keeps three tensors of that size."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float):  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _rms_norm(x, weight, eps)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        if x.is_contiguous() and native.usable(x, weight, grad):
            of_x, of_weight, _ = ctx.needs_input_grad
            grad_x = native.rms_norm_backward(x, weight, grad, ctx.eps) if of_x else None
            return grad_x, native.rms_norm_weight(x, weight, grad, ctx.eps) if of_weight else None, None
        x_wide, grad_wide = _widened(x), _widened(grad)
        scale = _scale(x_wide, ctx.eps)
        unit = x_wide * scale
        grad_unit = grad_wide * _widened(weight)
        share = torch.linalg.vecdot(grad_unit, unit).div_(x.shape[-1]).unsqueeze(-1)
        grad_weight = (grad_wide * unit).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad_x = grad_unit.addcmul_(unit, share, value=-1).mul_(scale).to(grad.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, grad_weight, None


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if x.is_contiguous() and native.usable(x, weight):
        return native.rms_norm(x, weight, eps)
    wide = _widened(x)
    return (wide * _scale(wide, eps)).mul_(weight).to(x.dtype)


def _scale(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps), (..., 1)."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _widened(x: Tensor) -> Tensor:
    """In float32 at least; once, since arithmetic between two dtypes is slow."""
    return x if x.dtype == torch.float64 else x.float()
