"""Ways to spoil a net that several families' mutants share."""

import torch
from torch import nn

from luthier.core.attention import Attention
from luthier.core.block import Block, PostNorm, PreNorm


def swap_norms(block: Block) -> None:
    block.__class__ = PostNorm if isinstance(block, PreNorm) else PreNorm


def late(net) -> None:
    enter = net.enter
    net.enter = lambda ids, mask=None, *rest: enter(
        ids, mask, rest[0], rest[1], rest[2], torch.arange(1, ids.shape[1] + 1)[None], *rest[4:]
    )


def swap(part: nn.Module, first: str, second: str) -> None:
    one, other = getattr(part, first), getattr(part, second)
    setattr(part, first, other)
    setattr(part, second, one)


def each(kind: type, change):
    return lambda net: [change(part) for part in net.modules() if isinstance(part, kind)]


def see_one_more(part: Attention) -> None:
    plain = part.attend
    part.attend = lambda q, k, v, mask, *rest: plain(
        q, k, v, type(mask)(allow=torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(1)[None, None]), *rest
    )


def same(arch) -> dict:
    return {}


def general(kinds: list[str], decoders: list[str]) -> dict[str, tuple]:
    """Mutants of every kind: name: (changes of the architecture, change of the built net, kinds)."""
    others = {"gelu": "gelu_tanh", "gelu_tanh": "gelu", "silu": "gelu", "relu": "gelu"}
    return {
        "eps ten times larger": (lambda a: {"eps": a.eps * 10}, None, kinds),
        "another activation": (lambda a: {"act": others[a.act]}, None, kinds),
        "attention scale": (same, each(Attention, lambda m: setattr(m, "scale", 0.36)), kinds),
        "norm place": (same, lambda net: [swap_norms(block) for block in net.blocks], kinds),
        "no final norm": (same, lambda net: setattr(net, "norm", nn.Identity()), decoders),
        "not causal": (same, lambda net: setattr(net, "causal", False), decoders),
        "keys and values swapped between groups": (same, each(Attention, lambda m: m.v.weight.data.copy_(m.v.weight.flip(0))), kinds),
    }
