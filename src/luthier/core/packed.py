"""Attention over packed documents on a CPU, by plain matrix products.

The heads of a group are rows of one product, queries go in blocks so that a causal document costs little more than half its square,
and backward makes the probabilities again. Dao et al. 2022, arXiv:2205.14135, section 3 (blocks and recomputation), for documents
of some hundred tokens, where one block of keys is all of them. torch's own attention is the oracle (tests/core/test_packed.py).

N packed tokens, H query heads, G key-value heads, R = H / G heads of a group, K head width, n tokens of a document, t queries of a block
"""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

BLOCK = 128  # queries at a time


def packed_attention(
    q_HNK: Tensor, k_GNK: Tensor, v_GNK: Tensor, lengths: tuple[int, ...], causal: bool, scale: float, prefix: int = 0
) -> Tensor:
    """softmax(q k^T * scale) v within each document; (H, N, K). prefix: so many keys more stand before those of each document."""
    # Values are columns of one product with queries and keys: a copy of theirs lets the rest of it go, and products read it faster.
    return _Packed.apply(q_HNK, k_GNK, v_GNK.contiguous(), lengths, causal, scale, prefix)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, lengths, causal, scale, prefix):  # type: ignore[override]
        ctx.save_for_backward(q, k, v)
        ctx.rest = lengths, causal, scale, prefix
        out_NHK = q.new_empty(q.shape[1], q.shape[0], q.shape[2])
        groups, rows = k.shape[0], q.shape[0] // k.shape[0]
        for start, low, high, stop, before in _blocks(lengths, causal, prefix):
            p = _probabilities(_fold(q[:, low:high], groups), k[:, start:stop], before, rows, causal, scale)
            out_NHK[low:high] = _unfold(torch.bmm(p, v[:, start:stop]), rows).transpose(0, 1)
        return out_NHK.transpose(0, 1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        q, k, v = ctx.saved_tensors
        lengths, causal, scale, prefix = ctx.rest
        g_q, g_k, g_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        groups, rows = k.shape[0], q.shape[0] // k.shape[0]
        for start, low, high, stop, before in _blocks(lengths, causal, prefix):
            q_block, g_block = _fold(q[:, low:high], groups), _fold(grad[:, low:high], groups)
            keys, values = k[:, start:stop], v[:, start:stop]
            p = _probabilities(q_block, keys, before, rows, causal, scale)
            g_v[:, start:stop] += torch.bmm(p.mT, g_block)  # baddbmm_ into a slice would go matrix by matrix
            g_s = torch._softmax_backward_data(torch.bmm(g_block, values.mT), p, -1, p.dtype)
            g_q[:, low:high] = _unfold(torch.bmm(g_s, keys).mul_(scale), rows)
            g_k[:, start:stop] += torch.bmm(g_s.mT, q_block).mul_(scale)
        return g_q, g_k, g_v, None, None, None, None


def _blocks(lengths: tuple[int, ...], causal: bool, prefix: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(first key of the document, first and last query of the block, last key, keys before those of the block).

    Causal queries need no key beyond the block.
    """
    start = key = 0
    for length in lengths:
        for low in range(start, start + length, BLOCK):
            high = min(low + BLOCK, start + length)
            yield key, low, high, key + prefix + (high - start if causal else length), low - start + prefix
        start, key = start + length, key + prefix + length


def _fold(x_HtK: Tensor, groups: int) -> Tensor:
    """(G, R * t, K): the heads that share a key become rows of its product."""
    heads, length, width = x_HtK.shape
    return x_HtK.reshape(groups, heads // groups * length, width)


def _unfold(x_GRtK: Tensor, rows: int) -> Tensor:
    groups, length, width = x_GRtK.shape
    return x_GRtK.view(groups * rows, length // rows, width)


def _probabilities(q: Tensor, k: Tensor, before: int, rows: int, causal: bool, scale: float) -> Tensor:
    """softmax(q k^T * scale), (G, R * t, s): only the last t of the s keys can be too late for a query."""
    scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=scale)
    if causal:
        late = scores.view(len(k), rows, -1, k.shape[1])[..., before:]
        late.add_(_later(late.shape[-1], scores.dtype, scores.device))
    return torch.softmax(scores, -1)


@cache
def _later(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(t, t) with -inf where the key comes after the query, 0 elsewhere. One for each length up to a block's."""
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu_(1)
