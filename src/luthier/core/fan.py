"""Projections that share an input, in one product, with their low-rank terms. Hu et al. 2021, arXiv:2106.09685, eq. 3.

N rows (any leading shape), I input width, O output width, R rank
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.frozen import FrozenLinear
from luthier.core.recall import recipe_of

Projection = nn.Linear | FrozenLinear


@dataclass(frozen=True)
class LowRankTerm:
    """scale * B A x around a frozen projection; with a gain, gain * (W x + scale * B A x), the bias outside."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float
    gain_O: Tensor | None = None


class Adapted(nn.Module, ABC):
    """A projection with adapters around it, which may state itself as low-rank terms."""

    base: nn.Module

    @abstractmethod
    def low_rank(self) -> tuple[Projection, list[LowRankTerm]] | None:
        """The base and its terms, or None: call the module itself (dropout is on, another kind of adapter is active)."""


def bare(module: nn.Module) -> nn.Module:
    """The projection itself, without what is around it."""
    return module.base if isinstance(module, Adapted) else module


def fuse(linears: Sequence[nn.Linear]) -> None:
    """Lay the weights (and biases) of projections that share an input side by side in memory, so that `fan` can use them as one."""
    for name in ("weight", "bias"):
        parameters = [getattr(linear, name) for linear in linears]
        if any(p is None for p in parameters) or _joined([p.data for p in parameters]) is not None:
            continue
        whole = torch.cat([p.data for p in parameters])
        for p, part in zip(parameters, whole.split([len(p) for p in parameters]), strict=True):
            p.data = part


def fan(modules: tuple[nn.Module, ...], x: Tensor) -> tuple[Tensor, ...]:
    """[module(x) for module in modules], each (..., O_i): in one product where the bases are frozen and lie side by side."""
    sites = [_stated(module) for module in modules]
    if any(site is None for site in sites) or torch.compiler.is_compiling():
        return tuple(module(x) for module in modules)
    linears = [site[0] for site in sites if site is not None]
    weight = _weight(linears)
    if weight is None:  # not side by side: one by one
        return tuple(part for module in modules for part in fan((module,), x))
    bias_O = _joined_bias(linears)
    spans = _spans([linear.out_features for linear in linears])
    terms = [(span, term) for span, site in zip(spans, sites, strict=True) if site is not None for term in site[1]]
    if not terms and not (torch.is_grad_enabled() and x.requires_grad):
        return F.linear(x, _turned_back(weight, x.dtype), bias_O).split([stop - start for start, stop in spans], -1)
    factors = [factor for _, term in terms for factor in (term.a_RI, term.b_OR)]
    scales = [(span, term.scale) for span, term in terms]
    gain_O = _gains(terms, spans[-1][1], x.dtype)
    parts = _Fan.apply(x.reshape(-1, x.shape[-1]), recipe_of(x), weight, bias_O, gain_O, spans, scales, *factors)
    return tuple(part.view(*x.shape[:-1], -1) for part in parts)


def _stated(module: nn.Module) -> tuple[Projection, list[LowRankTerm]] | None:
    """A frozen projection and its low-rank terms, or None where the module must be called as it is."""
    stated: tuple[Projection, list[LowRankTerm]] | None = None
    if isinstance(module, Adapted):
        stated = module.low_rank()
    elif isinstance(module, FrozenLinear) or type(module) is nn.Linear:
        stated = None if module._forward_hooks or module._forward_pre_hooks else (module, [])
    return stated if stated is not None and not any(p.requires_grad for p in stated[0].parameters()) else None


def _weight(bases: Sequence[Projection]) -> Tensor | tuple[FrozenLinear, ...] | None:
    """One view over all weights, or the modules that keep them quantised; None where they are neither."""
    quantised = tuple(base for base in bases if isinstance(base, FrozenLinear))
    if quantised:
        return quantised if len(quantised) == len(bases) else None
    return _joined([base.weight for base in bases])


def _turned_back(weight: Tensor | tuple[FrozenLinear, ...], dtype: torch.dtype) -> Tensor:
    if isinstance(weight, Tensor):
        return weight
    parts = [module.turned_back(dtype) for module in weight]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _gains(terms: Sequence[tuple[tuple[int, int], LowRankTerm]], outputs: int, dtype: torch.dtype) -> Tensor | None:
    """(O,) of all projections, 1 where there is none; None where nowhere is one."""
    gains = {span: term.gain_O.to(dtype) for span, term in terms if term.gain_O is not None}
    if not gains:
        return None
    like, parts, at = next(iter(gains.values())), [], 0
    for (start, stop), gain_O in sorted(gains.items(), key=lambda item: item[0]):
        parts += [like.new_ones(start - at), gain_O]
        at = stop
    return torch.cat([*parts, like.new_ones(outputs - at)])


def _spans(sizes: Sequence[int]) -> list[tuple[int, int]]:
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _joined(parts: Sequence[Tensor]) -> Tensor | None:
    """One view over tensors that lie row after row in one storage; None where they do not."""
    first, here = parts[0], parts[0].storage_offset()
    if len(parts) == 1:
        return first
    for part in parts:
        if not part.is_contiguous() or part.storage_offset() != here or part.dtype != first.dtype:
            return None
        if part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        here += part.numel()
    rows = sum(len(part) for part in parts)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def _joined_bias(linears: Sequence[Projection]) -> Tensor | None:
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]  # type: ignore[misc]
    if not biases:
        return None
    assert len(biases) == len(linears), "projections that share an input all have a bias or none has"
    joined = _joined(biases)
    return torch.cat(biases) if joined is None else joined


def _join_columns(grads: Sequence[Tensor]) -> Tensor:
    """(N, sum O) of the parts' gradients: a view where they are columns of one tensor already, as a gated activation leaves them."""
    first, here = grads[0], grads[0].storage_offset()
    if len(grads) == 1:
        return first
    for grad in grads:
        same = grad.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() and grad.stride() == first.stride()
        if not same or grad.storage_offset() != here or grad.stride(1) != 1:
            return torch.cat(list(grads), -1)
        here += grad.shape[1]
    return first.as_strided((len(first), sum(grad.shape[1] for grad in grads)), first.stride(), first.storage_offset())


class _Fan(torch.autograd.Function):
    """y = gain * (x W^T + scale * (x A^T) B^T on each term's columns) + b; W and b are frozen. All A's make one product.

    A quantised W is turned back for each product and forgotten.

    A gain's gradient needs what it was multiplied by. Without b that is y / gain, and y is mostly kept by its readers anyhow.
    """

    @staticmethod
    def forward(ctx, x_NI, recipe, weight, bias_O, gain_O, spans, scales, *factors):  # type: ignore[override]
        y_NO = F.linear(x_NI, _turned_back(weight, x_NI.dtype), bias_O if gain_O is None else None)
        a_RI, bs, ranks = _stack(factors, x_NI.dtype)
        if a_RI is not None:
            u_NR = x_NI @ a_RI.T
            for (start, stop), scale, b_OR, (low, high) in _terms(scales, bs, ranks):
                y_NO[:, start:stop].addmm_(u_NR[:, low:high], b_OR.T, alpha=scale)
        product_NO = None
        if gain_O is not None:
            ctx.divide = bias_O is None and bool(gain_O.all())
            product_NO = y_NO
            y_NO = y_NO.mul_(gain_O) if ctx.divide else y_NO * gain_O
            y_NO = y_NO if bias_O is None else y_NO.add_(bias_O)
        ctx.recipe = recipe if a_RI is not None else None
        kept = x_NI if a_RI is not None and recipe is None else None
        ctx.quantised = None if isinstance(weight, Tensor) else weight
        ctx.save_for_backward(weight if isinstance(weight, Tensor) else None, kept, gain_O, product_NO, *factors)
        ctx.scales = scales
        return tuple(y_NO[:, start:stop] for start, stop in spans)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[override]
        weight, x_NI, gain_O, product_NO, *factors = ctx.saved_tensors
        weight = ctx.quantised if weight is None else weight
        g_NO, g_gain = _join_columns(grads), None
        if gain_O is not None:
            g_gain = (g_NO * product_NO).sum(0)
            g_gain, g_NO = g_gain / gain_O if ctx.divide else g_gain, g_NO * gain_O
        g_x = g_NO @ _turned_back(weight, g_NO.dtype) if ctx.needs_input_grad[0] else None
        if not factors:
            return g_x, None, None, None, None, None, None
        x_NI = ctx.recipe().view(-1, factors[0].shape[1]) if ctx.recipe is not None else x_NI
        a_RI, bs, ranks = _stack(factors, g_NO.dtype)
        assert a_RI is not None
        u_NR = x_NI @ a_RI.T
        g_u = torch.empty_like(u_NR)
        g_bs = []
        for (start, stop), scale, b_OR, (low, high) in _terms(ctx.scales, bs, ranks):
            g_part = g_NO[:, start:stop]
            torch.mm(g_part, b_OR, out=g_u[:, low:high]).mul_(scale)
            g_bs.append((u_NR[:, low:high].T @ g_part).T.mul(scale))  # rank rows first: three times as fast as (O, N) @ (N, R)
        if g_x is not None:
            g_x.addmm_(g_u, a_RI)
        g_as = (g_u.T @ x_NI).split([high - low for low, high in ranks])
        pairs = [(a.to(p.dtype), b.to(q.dtype)) for a, b, p, q in zip(g_as, g_bs, factors[::2], factors[1::2], strict=True)]
        return g_x, None, None, None, g_gain, None, None, *(grad for pair in pairs for grad in pair)


def _stack(factors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor | None, list[Tensor], list[tuple[int, int]]]:
    """All A's on top of each other, the B's, and which columns of x A^T belong to which."""
    if not factors:
        return None, [], []
    a, b = factors[::2], factors[1::2]
    return torch.cat(list(a)).to(dtype), [part.to(dtype) for part in b], _spans([len(part) for part in a])


def _terms(scales, bs, ranks):  # (columns of y), scale, B, (columns of x A^T)
    return [(span, scale, b, rank) for (span, scale), b, rank in zip(scales, bs, ranks, strict=True)]
