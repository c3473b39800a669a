"""Attention, and who may see whom. Vaswani et al. 2017, arXiv:1706.03762, section 3.2; grouped queries: arXiv:2305.13245.

B batch, T query length, S key length, D width, H query heads, G key-value heads, K head width
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.cache import Cache
from luthier.core.fan import fan
from luthier.core.packed import Documents, packed_attention
from luthier.core.position import Rotation, rotate


@dataclass(frozen=True)
class Mask:
    """Who may see whom, as a description: the kernel is chosen from it.

    causal: no query sees a later key. window: nor one that is `window` or more before it.
    lengths: the one row (B == 1) holds documents of these lengths that do not see each other.
    prompts: with lengths and causal, the first n tokens of each document are seen by all of it (a bidirectional prompt).
    keys: (B, S) bool, False for padding. allow: (B or 1, H or 1, T, S) bool, anything else; with several lengths, each document as a row,
    (documents or 1, H or 1, longest, longest).
    key_lengths: with lengths, those of the documents that the keys are of, where they are others (cross-attention).
    """

    causal: bool = False
    window: int | None = None
    lengths: tuple[int, ...] | None = None
    prompts: tuple[int, ...] | None = None
    keys: Tensor | None = None
    allow: Tensor | None = None
    key_lengths: tuple[int, ...] | None = None

    @property
    def plain(self) -> bool:
        return self.window is None and self.prompts is None and self.keys is None and self.allow is None

    def matrix(self, queries: int, keys: int, device: torch.device, prompt_B: Tensor | None = None) -> Tensor | None:
        """(B or 1, H or 1, T, S) bool, True where the query sees the key; None where everything is seen. Queries are the last T keys."""
        allow = self.allow
        if self.causal or self.window is not None:
            i = torch.arange(keys - queries, keys, device=device)[:, None]
            j = torch.arange(keys, device=device)[None]
            near = (j <= i) if self.causal else torch.ones_like(j <= i)
            if self.window is not None:
                near = near & (j > i - self.window) & (j < i + self.window)
            near = near[None, None]
            if prompt_B is not None:
                near = near | (j < prompt_B[:, None, None])[:, None]
            allow = near if allow is None else allow & near
        if self.keys is not None:
            real = self.keys[:, None, None, :]
            allow = real if allow is None else allow & real
        return allow


Attend = Callable[..., Tensor]


Prefix = tuple[Tensor, Tensor]  # keys and values, each (G, P, K)


def attend(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    mask: Mask,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    prefix: Prefix | None = None,
) -> Tensor:
    """softmax(q k^T * scale + bias) v over the keys that `mask` lets each query see; (B, H, T, K). A query that sees no key gives 0.

    scale defaults to K^-0.5; bias is additive, (1 or B, H, T, S), and in a packed row the same for each document. prefix: keys and values
    that stand before those of every row and document; all queries see them, without a bias.
    """
    if mask.lengths is not None and len(mask.lengths) > 1:
        return _packed(q_BHTK, k_BGSK, v_BGSK, mask, bias, scale, dropout, prefix)
    prompt = torch.tensor(mask.prompts, device=q_BHTK.device) if mask.prompts else None
    return _padded(q_BHTK, k_BGSK, v_BGSK, mask, prompt, bias, scale, dropout, prefix)


def _padded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Mask,
    prompt_B: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
    dropout: float,
    prefix: Prefix | None,
) -> Tensor:
    queries, keys = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if prefix is None and mask.plain and prompt_B is None and bias is None and (not mask.causal or queries == keys or queries == 1):
        causal = mask.causal and queries > 1
        return F.scaled_dot_product_attention(q, k, v, None, dropout, causal, scale=scale, enable_gqa=grouped)
    if prefix is None and bias is not None and not bias.requires_grad and not torch.compiler.is_compiling():
        full, blind = _folded(bias, mask, queries, keys, prompt_B)
        out = F.scaled_dot_product_attention(q, k, v, full, dropout, scale=scale, enable_gqa=grouped)
        return out if blind is None else out.masked_fill(blind, 0.0)
    allow = mask.matrix(queries, keys, q.device, prompt_B)
    if prefix is not None:
        k, v = (torch.cat([before.to(x.dtype).expand(x.shape[0], -1, -1, -1), x], 2) for before, x in zip(prefix, (k, v), strict=True))
        allow = None if allow is None else F.pad(allow, (k.shape[2] - keys, 0), value=True)
        bias = None if bias is None else F.pad(bias, (k.shape[2] - keys, 0))
    if allow is None:
        return F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale, enable_gqa=grouped)
    # Softmax over nothing is undefined (additive masks cancel and everything is seen): such rows see all, then are set to 0.
    sighted = allow.any(-1, keepdim=True)
    allow = allow | ~sighted
    full = allow if bias is None else bias.masked_fill(~allow, float("-inf"))
    out = F.scaled_dot_product_attention(q, k, v, full, dropout, scale=scale, enable_gqa=grouped)
    return out.masked_fill(~sighted, 0.0)


def _folded(bias: Tensor, mask: Mask, queries: int, keys: int, prompt_B: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The bias with minus infinity where nothing may be seen, and which queries see nothing at all (None: there are none).

    Every layer adds the same one (ALiBi's): it is made once and kept at the bias, for as long as that lives.
    """
    kept = getattr(bias, "folded", None)
    if kept is not None and kept[0] is mask:
        return kept[1:]
    allow = mask.matrix(queries, keys, bias.device, prompt_B)
    if allow is None:
        return bias, None
    sighted = allow.any(-1, keepdim=True)
    blind = None if sighted.all() else ~sighted
    full = bias.masked_fill(~(allow if blind is None else allow | blind), float("-inf"))
    bias.folded = mask, full, blind  # type: ignore[attr-defined]
    return full, blind


def _packed(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, bias: Tensor | None, scale: float | None, dropout: float, prefix: Prefix | None
) -> Tensor:
    """On a CPU document by document; elsewhere each document becomes a row of a padded batch, and comes back."""
    assert mask.lengths is not None and q.shape[0] == 1
    described = mask.window is None and mask.prompts is None and mask.keys is None and mask.allow is None
    if q.device.type == "cpu" and dropout == 0.0 and described and (bias is None or bias.shape[0] == 1):
        own_keys = mask.key_lengths or mask.lengths
        keys, values, more = (k[0], v[0], 0) if prefix is None else (*_led(prefix, k[0], v[0], own_keys), prefix[0].shape[1])
        documents = Documents(mask.lengths, mask.causal, more, mask.key_lengths)
        added = None if bias is None else bias[0].to(q.dtype)
        return packed_attention(q[0], keys, values, documents, scale or q.shape[-1] ** -0.5, added)[None]
    place = unpack_index(mask.lengths, q.device)
    key_place = place if mask.key_lengths is None else unpack_index(mask.key_lengths, q.device)
    real_BT = place >= 0
    q, k, v = (x[0].transpose(0, 1)[at.clamp(min=0)].transpose(1, 2) for x, at in ((q, place), (k, key_place), (v, key_place)))
    prompt = torch.tensor(mask.prompts, device=q.device) if mask.prompts is not None else None
    keys = key_place >= 0
    keys = keys if mask.keys is None else keys & mask.keys[0][key_place.clamp(min=0)]
    inner = replace(mask, lengths=None, key_lengths=None, prompts=None, keys=keys)
    out = _padded(q, k, v, inner, prompt, bias, scale, dropout, prefix)
    return out.transpose(1, 2)[real_BT].transpose(0, 1)[None]


def _led(prefix: Prefix, k_GNK: Tensor, v_GNK: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Keys and values with the prefix before those of each document."""
    pairs = ((before.to(x.dtype), x.split(list(lengths), 1)) for before, x in zip(prefix, (k_GNK, v_GNK), strict=True))
    return tuple(torch.cat([part for document in documents for part in (before, document)], 1) for before, documents in pairs)


def unpack_index(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """(documents, longest) positions in the packed row, -1 where a document has ended."""
    length_B = torch.tensor(lengths, device=device)
    step = torch.arange(max(lengths), device=device)[None]
    start = (length_B.cumsum(0) - length_B)[:, None]
    return torch.where(step < length_B[:, None], start + step, -1)


class Attention(nn.Module):
    """Multi-head attention. kv_heads < heads shares keys and values among groups of query heads; 1 is multi-query.

    `attend` is the attention call itself, which a tuning method may replace. norm: makes norms of one head's width, which queries and keys
    go through before they are turned. memory_width: of what keys and values are made of, where that is another width.
    """

    fans = ("q", "k", "v")  # they share their input

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_width: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        scale: float | None = None,
        window: int | None = None,
        dropout: float = 0.0,
        memory_width: int | None = None,
        norm: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads or heads, head_width or width // heads
        self.q = nn.Linear(width, heads * self.head_width, bias)
        self.k = nn.Linear(memory_width or width, self.kv_heads * self.head_width, bias)
        self.v = nn.Linear(memory_width or width, self.kv_heads * self.head_width, bias)
        self.o = nn.Linear(heads * self.head_width, width, bias if out_bias is None else out_bias)
        self.q_norm, self.k_norm = (None, None) if norm is None else (norm(self.head_width), norm(self.head_width))
        self.scale, self.window, self.dropout = scale, window, dropout
        self.attend: Attend = attend

    def forward(
        self,
        x_BTD: Tensor,
        mask: Mask,
        rotation: Rotation | None = None,
        bias: Tensor | None = None,
        memory_BSD: Tensor | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """memory: the keys and values come from there (cross-attention). cache: earlier keys and values come from there."""
        if memory_BSD is None:
            q, k, v = (self._heads(y) for y in fan((self.q, self.k, self.v), x_BTD))
        else:
            q = self._heads(fan((self.q,), x_BTD)[0])
            k, v = self._remembered(memory_BSD, cache, layer)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None and memory_BSD is None:
            k, v = cache.update(layer, k, v)
        if self.window is not None:
            mask = replace(mask, window=self.window)
        y_BHTK = self.attend(q, k, v, mask, bias, self.scale, self.dropout if self.training else 0.0)
        (out,) = fan((self.o,), y_BHTK.transpose(1, 2).flatten(2))
        return out

    def _remembered(self, memory_BSD: Tensor, cache: Cache | None, layer: int) -> tuple[Tensor, Tensor]:
        """The memory's keys and values: the same at every step, so a cache keeps them."""
        if cache is not None and layer in cache.crossed:
            return cache.crossed[layer]
        k, v = (self._heads(y) for y in fan((self.k, self.v), memory_BSD))
        if cache is not None:
            cache.crossed[layer] = k, v
        return k, v

    def _heads(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
