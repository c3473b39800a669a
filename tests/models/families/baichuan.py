"""Baichuan: (our architecture, their configuration, their class) by kind."""

import transformers as hf
from families.plain import Config, PlainBaichuan
from families.sizes import SMALL
from mutations import each, same, swap
from torch import nn

from luthier.core.attention import Attention
from luthier.core.position import ALiBi
from luthier.models.baichuan import Baichuan

ROTARY = SMALL | dict(model_type="baichuan", rms_norm_eps=1e-6)
NO_ROTARY = {key: value for key, value in ROTARY.items() if key != "max_position_embeddings"} | {"model_max_length": 220}
KINDS = {
    "baichuan_7b": (Baichuan, Config(**ROTARY), PlainBaichuan),
    "baichuan_13b": (Baichuan, Config(**NO_ROTARY), PlainBaichuan),
    "baichuan2_7b": (Baichuan, Config(**ROTARY, z_loss_weight=0), PlainBaichuan),
    "baichuan2_13b": (Baichuan, Config(**NO_ROTARY, z_loss_weight=0), PlainBaichuan),
}
SAVED = {"baichuan_7b": (hf.LlamaConfig, hf.LlamaForCausalLM)}

ALIBI = ("baichuan_13b", "baichuan2_13b")
MUTANTS = {
    "halves of W_pack swapped": (same, each(Attention, lambda m: swap(m, "q", "k")), tuple(KINDS)),
    "head without its norm": (
        same,
        lambda net: setattr(net.heads["lm"], "out", plain(net.heads["lm"].out)),
        ("baichuan2_7b", "baichuan2_13b"),
    ),
    "slopes a little steeper": (same, each(ALiBi, lambda m: setattr(m, "slopes", [s * 1.001 for s in m.slopes])), ALIBI),
    "slopes in another order": (same, each(ALiBi, lambda m: m.slopes.reverse()), ALIBI),
    "no ALiBi": (same, lambda net: setattr(net, "relative", None), ALIBI),
}


def plain(head: nn.Module) -> nn.Linear:
    out = nn.Linear(*head.weight.shape[::-1], bias=False)
    out.weight = head.weight
    return out
