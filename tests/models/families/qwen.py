"""Qwen, the first: (our architecture, their configuration, their class) by kind."""

import transformers as hf
from families.plain import Config, PlainQwen
from mutations import each, same, see_one_more, swap
from torch import nn
from torch.nn import functional as F

from luthier.core.attention import Attention
from luthier.core.feedforward import GatedFeedForward
from luthier.models.qwen import Qwen

SIZES = dict(vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, seq_length=220)
KINDS = {"qwen": (Qwen, Config(model_type="qwen", kv_channels=8, layer_norm_epsilon=1e-6, **SIZES), PlainQwen)}
SAVED = {"qwen": (hf.Qwen2Config, hf.Qwen2ForCausalLM)}

MUTANTS = {
    "w1 as the gate": (same, each(GatedFeedForward, lambda m: swap(m, "gate", "up")), ("qwen",)),
    "q and k swapped in c_attn": (same, each(Attention, lambda m: swap(m, "q", "k")), ("qwen",)),
    "c_attn's bias forgotten": (same, each(Attention, lambda m: nn.init.zeros_(m.v.bias)), ("qwen",)),
    "rotary base, qwen": (lambda a: {"theta": a.theta * 1.001}, None, ("qwen",)),
    "sees one token ahead, qwen": (same, each(Attention, see_one_more), ("qwen",)),
    "another activation, qwen": (same, each(GatedFeedForward, lambda m: setattr(m, "act", F.gelu)), ("qwen",)),
}
EXEMPT = {"another activation": list(KINDS)}  # they have one only
