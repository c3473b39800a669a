"""One token a step through a pre-norm transformer with as few operators as possible. The plain path, `net.hidden`, is its oracle.

Positions are rotary, learned or ALiBi's. q, k and v are one product, gate and up another; the queries of a group stand where a sequence's
would, so that no key is copied and no mask is needed; additions go into the residual in place. Nets of other parts (or with adapters that
are more than low-rank terms) are run by the plain path. On a CPU all of it is one call of core/step.py where that knows the parts.
B rows, H query heads, G key-value heads, K head width, D width, S stored tokens, V vocabulary, R ranks of all low-rank terms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.core.attention import Attention, attend
from luthier.core.block import PreNorm
from luthier.core.cache import Cache
from luthier.core.fan import Adapted, LowRankTerm
from luthier.core.feedforward import FeedForward, GatedFeedForward
from luthier.core.heads import LanguageHead, NormHead
from luthier.core.position import ALiBi
from luthier.core.product import Product, product, quantised, with_terms
from luthier.core.quantise import quantise
from luthier.core.step import Step, compilable
from luthier.core.transformer import Net, Transformer

Stated = tuple[nn.Linear, Sequence[LowRankTerm]]


@dataclass(frozen=True)
class Joined:
    """Projections of one input as one, with their low-rank terms: x W^T + bias + (x A^T) B^T."""

    weight_OI: Tensor
    bias_O: Tensor | None
    a_RI: Tensor | None
    b_OR: Tensor | None  # 0 where a term is not of that output

    def product(self, rows: int, int8: bool, copies: bool) -> Product:
        """In torch's operators."""
        base = quantised(quantise(self.weight_OI), self.bias_O) if int8 else product(self.weight_OI, self.bias_O, rows, copies)
        return base if self.a_RI is None or self.b_OR is None else with_terms(base, self.a_RI, self.b_OR)


@dataclass(frozen=True)
class Layer:
    """One block."""

    attn_norm: nn.Module
    qkv: Joined
    out: Joined
    ffn_norm: nn.Module
    gate_up: Joined  # gate, then up; up alone where there is no gate
    gated: bool
    act: Callable[[Tensor], Tensor]
    down: Joined
    heads: int
    kv_heads: int
    scale: float | None
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    window: int | None


class Decoder:
    """Built for a number of rows and the weights and adapters of this moment: make a new one after they change."""

    def __init__(self, net: Transformer, rows: int, int8: bool = False, copies: bool = True) -> None:
        self.net, self.rows = net, rows
        layers = [_layer(block) for block in net.blocks]
        self.layers = [layers[index] for index in net.order]
        self.groups = self.layers[0].kv_heads
        head = net.heads["lm"]
        assert isinstance(head, LanguageHead)
        scores = _joined(head.out)
        self.transform, self.step = head.transform, None
        if type(head.transform) is nn.Identity and compilable(layers, net.norm, scores):
            self.step = Step(self.layers, net.norm, scores, rows, int8)
            return

        def ready(layer: Layer) -> tuple[Product, ...]:
            return tuple(each.product(rows, int8, copies) for each in (layer.qkv, layer.out, layer.gate_up, layer.down))

        self.head, products = scores.product(rows, int8, copies), [ready(layer) for layer in layers]
        self.products = [products[index] for index in net.order]

    def __call__(self, ids_B: Tensor, cache: Cache) -> Tensor:
        """Scores (B, V) of the token after these, which follow what the cache holds; it then holds them too."""
        net = self.net
        net.check(ids_B[:, None], None, cache)
        place = cache.begin(self.rows, 1).to(ids_B.device)
        x_BD = net.embed(ids_B[:, None], place, None)[:, 0]
        rotation = None if net.rotary is None else net.rotary(place, x_BD.dtype)
        seen = self._seen(cache, x_BD)
        if self.step is not None:
            return self.step(x_BD, rotation and rotation[:2], None if seen is None else _added(seen), cache)
        turn = None
        if rotation is not None:
            cos, sin, _ = rotation
            turn = torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        for i, (layer, (qkv, out, gate_up, down)) in enumerate(zip(self.layers, self.products, strict=True)):
            x_BD.add_(out(self._attention(layer, qkv(layer.attn_norm(x_BD)), turn, seen, cache, i)))
            inner = gate_up(layer.ffn_norm(x_BD))
            if layer.gated:
                gate, up = inner.chunk(2, -1)
                x_BD.add_(down(layer.act(gate).mul_(up)))
            else:
                x_BD.add_(down(layer.act(inner)))
        return self.head(self.transform(net.norm(x_BD)))

    def _seen(self, cache: Cache, like: Tensor) -> Tensor | None:
        """Which keys are real, or what is added to their scores, for all layers: (1 or B, 1 or G, 1 or H / G, S)."""
        real = None if cache.keys is None else cache.keys[:, None, None]
        if self.net.relative is None:
            return real
        bias_BH1S = self.net.relative(1, cache.length, like.device, cache.keys).to(like.dtype)
        bias = bias_BH1S.squeeze(2).unflatten(1, (self.groups, -1))
        return bias if real is None else bias.masked_fill(~real, float("-inf"))

    def _attention(self, layer: Layer, y: Tensor, turn: tuple[Tensor, Tensor] | None, seen: Tensor | None, cache: Cache, i: int) -> Tensor:
        heads, groups = layer.heads, layer.kv_heads
        y = y.view(self.rows, heads + 2 * groups, -1)
        width = y.shape[-1]
        if layer.q_norm is not None and layer.k_norm is not None:
            y[:, :heads], y[:, heads : heads + groups] = layer.q_norm(y[:, :heads]), layer.k_norm(y[:, heads : heads + groups])
        if turn is not None:
            turned = y[:, : heads + groups]
            halves = turned.roll(width // 2, -1)
            turned.mul_(turn[0]).addcmul_(halves, turn[1])
        kv = cache.room(i, y[:, :groups, None], cache.length - 1)
        kv.select(3, cache.length - 1).copy_(y[:, heads:].view(self.rows, 2, groups, width).transpose(0, 1))
        first = 0 if layer.window is None else max(0, cache.length - layer.window)
        k_BGSK, v_BGSK = kv[:, :, :, first : cache.length].unbind(0)
        seen = seen if seen is None or not first else seen[..., first:]
        q = y[:, :heads].view(self.rows, groups, heads // groups, width)
        return F.scaled_dot_product_attention(q, k_BGSK, v_BGSK, seen, scale=layer.scale).reshape(self.rows, heads * width)


def _added(seen: Tensor) -> Tensor:
    """What `_seen` says as numbers to add, (1 or B, 1 or H, S)."""
    added = seen if seen.is_floating_point() else torch.zeros_like(seen, dtype=torch.float32).masked_fill_(~seen, float("-inf"))
    return added.flatten(1, 2)


def _layer(block: nn.Module) -> Layer:
    attn, ffn = block.attn, block.ffn
    return Layer(
        attn_norm=block.attn_norm, qkv=_joined(attn.q, attn.k, attn.v), out=_joined(attn.o), ffn_norm=block.ffn_norm,  # type: ignore[arg-type]
        gate_up=_joined(ffn.gate, ffn.up) if isinstance(ffn, GatedFeedForward) else _joined(ffn.up), gated=isinstance(ffn, GatedFeedForward),  # type: ignore[arg-type]
        act=ffn.act, down=_joined(ffn.down), window=attn.window,  # type: ignore[arg-type]
        heads=attn.heads, kv_heads=attn.kv_heads, scale=attn.scale, q_norm=attn.q_norm, k_norm=attn.k_norm,  # type: ignore[arg-type]
    )  # fmt: skip


def _joined(*modules: nn.Module) -> Joined:
    """All these projections of one input, low-rank terms included."""
    stated = [_stated(module) for module in modules]
    assert all(site is not None for site in stated), "decodable() comes before Decoder"
    linears, terms = [site[0] for site in stated if site], [site[1] for site in stated if site]
    weight_OI = _side_by_side([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    bias_O = torch.cat(biases) if biases else None
    a_RI = [term.a_RI.to(weight_OI) for of_one in terms for term in of_one]
    if not a_RI:
        return Joined(weight_OI, bias_O, None, None)
    b_OR = [torch.cat([weight_OI.new_zeros(linear.out_features, 0), *(term.b_OR.to(weight_OI) * term.scale for term in of_one)], 1)
            for linear, of_one in zip(linears, terms, strict=True)]  # fmt: skip
    return Joined(weight_OI, bias_O, torch.cat(a_RI), torch.block_diag(*b_OR))


def decodable(net: Net) -> bool:
    """Whether Decoder knows every part of this net, as it stands now (adapters and hooks included)."""
    if type(net) is not Transformer or not net.causal or "lm" not in net.heads:
        return False
    if net.relative is not None and (type(net.relative) is not ALiBi or net.rotary is not None):
        return False
    if net.rotary is not None and not net.rotary.plain:
        return False
    if net.training or any(module._forward_hooks or module._forward_pre_hooks for module in net.modules()):
        return False
    head = net.heads["lm"]
    return type(head) is LanguageHead and _stated(head.out) is not None and all(_known(block) for block in net.blocks)


def _known(block: nn.Module) -> bool:
    if (
        type(block) is not PreNorm
        or type(block.attn) is not Attention
        or type(block.ffn) not in (FeedForward, GatedFeedForward)
        or block.cross is not None
    ):
        return False
    attn, ffn = block.attn, block.ffn
    gates = (ffn.gate,) if isinstance(ffn, GatedFeedForward) else ()
    sites = [_stated(module) for module in (attn.q, attn.k, attn.v, attn.o, *gates, ffn.up, ffn.down)]  # type: ignore[arg-type]
    same = [[site[0].bias is None for site in group if site] for group in (sites[:3], sites[4:-1])]
    return attn.attend is attend and None not in sites and all(len(set(group)) == 1 for group in same)


def _stated(module: nn.Module) -> Stated | None:
    """A projection and the low-rank terms around it; None where it must be called as it is."""
    if isinstance(module, Adapted):
        stated = module.low_rank()
        if stated is None or not isinstance(stated[0], nn.Linear) or any(term.gain_O is not None for term in stated[1]):
            return None
        return stated[0], stated[1]
    if type(module) is NormHead:
        return module.fixed(), []
    return (module, []) if type(module) is nn.Linear else None


def _side_by_side(weights: list[Tensor]) -> Tensor:
    """One (sum of O, I) weight: a view where they lie one after the other in memory, as core.fan.fuse leaves them."""
    first, rows = weights[0], sum(len(weight) for weight in weights)
    here = first.storage_offset()
    for weight in weights:
        adjacent = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() and weight.storage_offset() == here
        if not adjacent or not weight.is_contiguous():
            return torch.cat(weights)
        here += weight.numel()
    return first.as_strided((rows, first.shape[1]), first.stride(), first.storage_offset())
