"""Cross-entropy over a large vocabulary without keeping the logits.

N labelled positions, D width, V vocabulary
"""

import torch
from torch import Tensor

from luthier.core import native

BLOCK = 256  # positions at a time: their logits stay in reach of the cache and small beside the model


class _LinearCrossEntropy(torch.autograd.Function):
    """sum_n a_n CE(h_n W^T + b, y_n); the gradients are formed block by block in the forward pass, so no logits wait for backward."""

    @staticmethod
    def forward(ctx, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, label_N: Tensor, share_N: Tensor | None):  # type: ignore[override]
        wants_hidden, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        wide = _wide(hidden_ND.dtype)
        grad_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=wide) if wants_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=wide) if wants_bias and bias_V is not None else None
        total = hidden_ND.new_zeros((), dtype=wide)
        wanted = wants_hidden or wants_weight or wants_bias
        # Written over block after block: fresh memory of that size costs a good part of the product that fills it.
        product = hidden_ND.new_empty(min(BLOCK, len(label_N)), len(weight_VD))
        at_once = not wants_bias and native.usable(product)
        score, share = (product.new_empty((0,) if at_once else product.shape, dtype=wide) for _ in range(2))
        for start in range(0, len(label_N), BLOCK):
            block_ND, label = hidden_ND[start : start + BLOCK], label_N[start : start + BLOCK]
            part = None if share_N is None else share_N[start : start + BLOCK]
            y, z, p = (buffer[: len(block_ND)] for buffer in (product, score, share))
            torch.mm(block_ND, weight_VD.T, out=y)
            if at_once:
                losses, error = native.cross_entropy_(y if bias_V is None else y.add_(bias_V), label, part, wanted), y
            else:
                losses = _softmax(y if bias_V is None else y + bias_V, label, z, p)
                error = _error(y, p, label, part) if wanted else y
            total += losses.sum() if part is None else (losses * part).sum()
            if not wanted:
                continue
            if grad_hidden is not None:
                torch.mm(error, weight_VD, out=grad_hidden[start : start + BLOCK])
            if grad_weight is not None:
                if grad_weight.dtype == error.dtype:  # without a tensor of the weight's size for each block
                    grad_weight.addmm_(error.T, block_ND)
                else:
                    grad_weight += error.T @ block_ND
            if grad_bias is not None:
                grad_bias += p.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        hidden, weight, bias = ctx.saved_tensors
        return *(None if part is None else part * grad.to(part.dtype) for part in (hidden, weight, bias)), None, None


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, label_N: Tensor, share_N: Tensor | None = None
) -> Tensor:
    """Sum over the N positions of the cross-entropy of softmax(hidden W^T + bias), in nats.

    hidden (N, D), weight (V, D), bias (V) or None, label (N) int64 in [0, V): all of them count, so select the labelled positions
    first. share (N): what each position's loss is multiplied by. Peak memory is a block of logits instead of (N, V). Not twice differentiable.
    """
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, bias_V, label_N, share_N)


def _softmax(y: Tensor, label_N: Tensor, z: Tensor, p: Tensor) -> Tensor:
    """The losses (N,); z becomes the logits in the wide dtype, p their softmax."""
    torch.softmax(z.copy_(y), -1, out=p)
    top, where = z.max(-1, keepdim=True)
    # log(sum exp z) = max z - log(max p), and max p is at least 1/V, never too small to hold
    return (top - p.gather(1, where).log() - z.gather(1, label_N[:, None])).squeeze(1)


def _error(y: Tensor, p: Tensor, label_N: Tensor, share_N: Tensor | None) -> Tensor:
    """share * (softmax - onehot), in p and in the logits' dtype."""
    p.scatter_add_(1, label_N[:, None], p.new_full((len(label_N), 1), -1.0))
    if share_N is not None:
        p *= share_N[:, None]
    return p if y.dtype == p.dtype else y.copy_(p)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
