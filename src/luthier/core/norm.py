"""Norms. LayerNorm is torch's; RMSNorm: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.recall import remember


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; no mean is taken away, no bias added."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        source, weight, eps = x.detach(), self.weight.detach(), self.eps
        return remember(_RMSNorm.apply(x, self.weight, eps), lambda: F.rms_norm(source, weight.shape, weight, eps))


class _RMSNorm(torch.autograd.Function):
    """Keeps only its input: torch's own keeps three tensors of that size."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float):  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return F.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        x, grad_wide = x.to(wide), grad.to(wide)
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(ctx.eps).rsqrt_()
        unit = x * scale
        grad_unit = grad_wide * weight.to(wide)
        share = torch.linalg.vecdot(grad_unit, unit).div_(x.shape[-1]).unsqueeze(-1)
        grad_x = grad_unit.addcmul_(unit, share, value=-1).mul_(scale) if ctx.needs_input_grad[0] else None
        grad_weight = (grad_wide * unit).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return None if grad_x is None else grad_x.to(grad.dtype), grad_weight, None
