"""Attention over packed documents on a CPU, by plain matrix products.

The heads of a group are rows of one product, queries go in blocks so that a causal document costs little more than half its square,
and backward makes the probabilities again. Dao et al. 2022, arXiv:2205.14135, section 3 (blocks and recomputation), for documents
of some hundred tokens, where one block of keys is all of them. torch's own attention is the oracle (tests/core/test_packed.py).

N packed tokens, H query heads, G key-value heads, R = H / G heads of a group, K head width, n tokens of a document, t queries of a block
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from luthier.core import native

BLOCK = 128  # queries at a time, twice as many where no half of the square can be left out


@dataclass(frozen=True)
class Documents:
    """Where documents lie in the packed rows of queries and keys. key_lengths: of those that the queries of each look at, if others.
    prefix: so many keys more stand before those of each document, which all of its queries see."""

    lengths: tuple[int, ...]
    causal: bool
    prefix: int = 0
    key_lengths: tuple[int, ...] | None = None

    def blocks(self) -> Iterator[tuple[slice, slice, int]]:
        """(queries of the block, keys they see, queries of the document before them). Causal queries need no key beyond the block."""
        start = key = 0
        size = BLOCK if self.causal else 2 * BLOCK
        for length, keys in zip(self.lengths, self.key_lengths or self.lengths, strict=True):
            for low in range(0, length, size):
                high = min(low + size, length)
                yield slice(start + low, start + high), slice(key, key + self.prefix + (high if self.causal else keys)), low
            start, key = start + length, key + self.prefix + keys


def packed_attention(
    q_HNK: Tensor, k_GNK: Tensor, v_GNK: Tensor, documents: Documents, scale: float, bias_HTS: Tensor | None = None
) -> Tensor:
    """softmax(q k^T * scale + bias) v within each document; (H, N, K). bias: one for all documents, without a column for the prefix."""
    # Values are columns of one product with queries and keys: a copy of theirs lets the rest of it go, and products read it faster.
    return _Packed.apply(q_HNK, k_GNK, v_GNK.contiguous(), bias_HTS, documents, scale)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, bias, documents, scale):  # type: ignore[override]
        ctx.save_for_backward(q, k, v, bias)
        ctx.rest = documents, scale
        out_NHK = q.new_empty(q.shape[1], q.shape[0], q.shape[2])
        groups, rows = k.shape[0], q.shape[0] // k.shape[0]
        for queries, keys, before in documents.blocks():
            p = _probabilities(_fold(q[:, queries], groups), k[:, keys], _seen(bias, queries, before), before, documents, scale)
            out_NHK[queries] = _unfold(torch.bmm(p, v[:, keys]), rows).transpose(0, 1)
        return out_NHK.transpose(0, 1)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        q, k, v, bias = ctx.saved_tensors
        documents, scale = ctx.rest
        g_q, g_k, g_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        g_bias = torch.zeros_like(bias, dtype=torch.promote_types(bias.dtype, torch.float32)) if ctx.needs_input_grad[3] else None
        groups, rows = k.shape[0], q.shape[0] // k.shape[0]
        for queries, keys, before in documents.blocks():
            q_block, g_block = _fold(q[:, queries], groups), _fold(grad[:, queries], groups)
            p = _probabilities(q_block, k[:, keys], _seen(bias, queries, before), before, documents, scale)
            g_v[:, keys] += torch.bmm(p.mT, g_block)  # baddbmm_ into a slice would go matrix by matrix
            g_p = torch.bmm(g_block, v[:, keys].mT)
            part = None if g_bias is None else _seen(g_bias, queries, before)
            if native.usable(g_p, p):
                g_s = native.softmax_backward_(g_p, p, scale, part, documents.prefix)
            else:
                g_s = torch._softmax_backward_data(g_p, p, -1, p.dtype)
                if part is not None:
                    of_heads = _unfold(g_s, rows)[..., documents.prefix :]
                    part[..., : of_heads.shape[2]] += of_heads
                g_s.mul_(scale)
            g_q[:, queries] = _unfold(torch.bmm(g_s, k[:, keys]), rows)
            g_k[:, keys] += torch.bmm(g_s.mT, q_block)
        return g_q, g_k, g_v, None if g_bias is None else g_bias.to(bias.dtype), None, None


def _fold(x_HtK: Tensor, groups: int) -> Tensor:
    """(G, R * t, K): the heads that share a key become rows of its product."""
    heads, length, width = x_HtK.shape
    return x_HtK.reshape(groups, heads // groups * length, width)


def _unfold(x_GRtK: Tensor, rows: int) -> Tensor:
    groups, length, width = x_GRtK.shape
    return x_GRtK.view(groups * rows, length // rows, width)


def _seen(bias_HTS: Tensor | None, queries: slice, before: int) -> Tensor | None:
    """The bias of a block's queries, of which `before` in the document stand before it."""
    return None if bias_HTS is None else bias_HTS[:, before : before + queries.stop - queries.start]


def _probabilities(q: Tensor, k: Tensor, bias: Tensor | None, before: int, documents: Documents, scale: float) -> Tensor:
    """softmax(q k^T * scale + bias), (G, R * t, s): only the last t of the s keys can be too late for a query."""
    if native.usable(q, k) and (bias is None or (bias.stride(2) == 1 and native.usable(q, bias))):
        block = (k.shape[1] - before - documents.prefix, before + documents.prefix) if documents.causal else (0, 0)
        return native.softmax_(torch.bmm(q, k.mT), scale, *block, bias, documents.prefix)
    scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=scale)
    if bias is not None:
        of_heads = _unfold(scores, len(bias) // len(k))[..., documents.prefix :]
        of_heads += bias[..., : of_heads.shape[2]]
    if documents.causal:
        late = scores.view(len(k), -1, k.shape[1] - before - documents.prefix, k.shape[1])[..., before + documents.prefix :]
        late.add_(_later(late.shape[-1], scores.dtype, scores.device))
    return torch.softmax(scores, -1)


@cache
def _later(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(t, t) with -inf where the key comes after the query, 0 elsewhere. One for each length up to a block's."""
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu_(1)
