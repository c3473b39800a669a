"""LLaDA: transformers' Llama in which every token sees every other, under LLaDA's names. (our architecture, configuration, class) by kind."""

import re
from collections import OrderedDict
from typing import Any

import torch
import transformers as hf
from mutations import same
from torch import nn

from luthier.models.diffusion_lm import DiffusionLM

NAMES = {
    "model.embed_tokens.": "model.transformer.wte.", "model.norm.": "model.transformer.ln_f.", "lm_head.": "model.transformer.ff_out.",
    "model.layers.": "model.transformer.blocks.", "self_attn.o_proj": "attn_out", "self_attn.": "", "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out", "input_layernorm": "attn_norm", "post_attention_layernorm": "ff_norm",
}  # fmt: skip
KEYS = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads", "mlp_hidden_size": "intermediate_size", "max_sequence_length": "max_position_embeddings",
    "rope_theta": "rope_theta", "rms_norm_eps": "rms_norm_eps",
}  # fmt: skip


def renamed(name: str) -> str:
    return re.sub("|".join(map(re.escape, NAMES)), lambda found: NAMES[found[0]], name)


class Config:
    """LLaDA's config.json."""

    def __init__(self, **values: Any):
        self.values = values

    def to_dict(self) -> dict[str, Any]:
        return dict(self.values)


class LLaDA(nn.Module):
    _supports_sdpa, _tied_weights_keys = True, None

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        inner = hf.LlamaConfig(**{theirs: config.values[key] for key, theirs in KEYS.items()})
        inner._attn_implementation = "sdpa"
        self.inner = hf.LlamaForCausalLM(inner)

    def forward(self, ids):
        length = ids.shape[1]
        return self.inner(ids, attention_mask=torch.zeros(len(ids), 1, length, length))

    def named_parameters(self, *args, **kwargs):
        return [(renamed(name), p) for name, p in self.inner.named_parameters()]

    def state_dict(self, *args, **kwargs):
        return OrderedDict((renamed(name), p) for name, p in self.inner.state_dict().items())

    def load_state_dict(self, state, strict=True, assign=False):
        theirs = {renamed(name): name for name in self.inner.state_dict()}
        return self.inner.load_state_dict({theirs[name]: tensor for name, tensor in state.items()}, strict)

    def tie_weights(self):
        pass


SIZES = dict(
    model_type="llada", vocab_size=60, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, mlp_hidden_size=48, max_sequence_length=220,
    rope_theta=5e5, rms_norm_eps=1e-5, mask_token_id=59,
)  # fmt: skip
KINDS = {"llada": (DiffusionLM, Config(**SIZES), LLaDA)}
ENCODERS = ["llada"]

MUTANTS = {
    "causal after all": (same, lambda net: setattr(net, "causal", True), ("llada",)),
    "rotary base, llada": (lambda a: {"theta": a.theta * 1.001}, None, ("llada",)),
    "no final norm, llada": (same, lambda net: setattr(net, "norm", nn.Identity()), ("llada",)),
    "head tied, llada": (same, lambda net: setattr(net.heads["lm"].out, "weight", net.embed.token.weight), ("llada",)),
}
