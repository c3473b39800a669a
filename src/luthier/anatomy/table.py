"""Where the parts of a transformer are: layouts that name, inside one block, the projections by role.

Roles: q k v o (attention), up gate down (feed-forward), attn_norm ffn_norm, and cross.q ... for a second attention. Attention,
feed-forward and norms are matched separately, so k + m + n rows cover k x m x n models. Roles with a module of their own are matched by
structure; roles that share one (fused projections) only for the model types listed with them, because a shape does not tell in which
order the rows lie.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from luthier.core.frozen import FrozenLinear

ROLES = ("q", "k", "v", "o", "up", "gate", "down", "attn_norm", "ffn_norm")
AROUND = ("embed", "head", "norm", "project")  # project: from what a picture model sees to what the language model reads


@dataclass(frozen=True)
class Fused:
    """A role that owns some output rows of a projection shared with other roles: part `index` of `parts`, in storage order."""

    path: str
    index: int
    parts: tuple[str, ...]
    per_head: bool = False  # the parts alternate head by head (GPT-NeoX, BLOOM)


@dataclass(frozen=True)
class Layout:
    """Role -> path inside a block, or the rows of a fused path. `types` lists the model types it is for; () any whose paths fit."""

    parts: dict[str, str | Fused]
    types: tuple[str, ...] = ()


def _at(stem: str, **names: str) -> dict[str, str | Fused]:
    return {role: f"{stem}.{name}" if stem else name for role, name in names.items()}


def _fused(path: str, *parts: str, per_head: bool = False) -> dict[str, str | Fused]:
    return {role: Fused(path, i, parts, per_head) for i, role in enumerate(parts)}


ATTENTION = (
    Layout(_at("attn", q="q", k="k", v="v", o="o")),  # ours
    Layout(_at("self_attn", q="q_proj", k="k_proj", v="v_proj", o="o_proj")),  # LLaMA and most since
    Layout(_at("self_attn", q="q_proj", k="k_proj", v="v_proj", o="out_proj")),  # BART, OPT, Whisper
    Layout(_at("self_attn", q="q_proj", k="k_proj", v="v_proj", o="dense")),  # Phi
    Layout(_at("attn", q="q_proj", k="k_proj", v="v_proj", o="out_proj")),  # GPT-J
    Layout(_at("attn.attention", q="q_proj", k="k_proj", v="v_proj", o="out_proj")),  # GPT-Neo
    Layout(_at("attention", q="self.query", k="self.key", v="self.value", o="output.dense")),  # BERT, RoBERTa, ELECTRA
    Layout(_at("attention", q="self.query_proj", k="self.key_proj", v="self.value_proj", o="output.dense")),  # DeBERTa
    Layout(_at("attention", q="q_lin", k="k_lin", v="v_lin", o="out_lin")),  # DistilBERT
    Layout(_at("attention", q="query", k="key", v="value", o="dense")),  # ALBERT
    Layout(_at("layer.0.SelfAttention", q="q", k="k", v="v", o="o")),  # T5
    Layout(_fused("self_attn.qkv_proj", "q", "k", "v") | {"o": "self_attn.o_proj"}, types=("phi3",)),
    Layout(_fused("attn.c_attn", "q", "k", "v") | {"o": "attn.c_proj"}, types=("gpt2", "openai-gpt")),
    Layout(_fused("attn.Wqkv", "q", "k", "v") | {"o": "attn.Wo"}, types=("modernbert",)),
    Layout(_fused("attention.query_key_value", "q", "k", "v", per_head=True) | {"o": "attention.dense"}, types=("gpt_neox",)),
    Layout(_fused("self_attention.query_key_value", "q", "k", "v", per_head=True) | {"o": "self_attention.dense"}, types=("bloom",)),
)
CROSS = (
    Layout(_at("cross", q="q", k="k", v="v", o="o")),  # ours
    Layout(_at("encoder_attn", q="q_proj", k="k_proj", v="v_proj", o="out_proj")),  # BART
    Layout(_at("layer.1.EncDecAttention", q="q", k="k", v="v", o="o")),  # T5
    Layout(_at("crossattention", q="self.query", k="self.key", v="self.value", o="output.dense")),  # BERT as a decoder
)
FEED_FORWARD = (
    Layout(_at("ffn", gate="gate", up="up", down="down")),  # ours
    Layout(_at("ffn", up="up", down="down")),  # ours
    Layout(_at("mlp", gate="gate_proj", up="up_proj", down="down_proj")),  # LLaMA
    Layout(_at("mlp", up="up_proj", down="down_proj")),  # Nemotron
    Layout(_at("mlp", up="fc1", down="fc2")),  # Phi
    Layout(_at("", up="fc1", down="fc2")),  # BART, OPT
    Layout(_at("mlp", up="c_fc", down="c_proj")),  # GPT-2, GPT-Neo, StarCoder 2
    Layout(_at("mlp", up="fc_in", down="fc_out")),  # GPT-J
    Layout(_at("mlp", up="dense_h_to_4h", down="dense_4h_to_h")),  # GPT-NeoX, BLOOM
    Layout(_at("", up="intermediate.dense", down="output.dense")),  # BERT
    Layout(_at("ffn", up="lin1", down="lin2")),  # DistilBERT
    Layout(_at("", up="ffn", down="ffn_output")),  # ALBERT
    Layout(_at("layer.1.DenseReluDense", up="wi", down="wo")),  # T5's encoder
    Layout(_at("layer.1.DenseReluDense", gate="wi_0", up="wi_1", down="wo")),  # T5 1.1's encoder
    Layout(_at("layer.2.DenseReluDense", up="wi", down="wo")),  # T5's decoder
    Layout(_at("layer.2.DenseReluDense", gate="wi_0", up="wi_1", down="wo")),  # T5 1.1's decoder
    Layout(_fused("mlp.gate_up_proj", "gate", "up") | {"down": "mlp.down_proj"}, types=("phi3", "glm", "glm4")),
    Layout(_fused("mlp.Wi", "gate", "up") | {"down": "mlp.Wo"}, types=("modernbert",)),
)
NORMS = (
    Layout(_at("", attn_norm="attn_norm", ffn_norm="ffn_norm")),  # ours
    Layout(_at("", attn_norm="input_layernorm", ffn_norm="pre_feedforward_layernorm")),  # Gemma 2 and 3
    Layout(_at("", attn_norm="input_layernorm", ffn_norm="post_attention_layernorm")),  # LLaMA, GPT-NeoX, BLOOM
    Layout(_at("", attn_norm="attn_norm", ffn_norm="mlp_norm")),  # ModernBERT
    Layout(_at("", attn_norm="ln_1", ffn_norm="ln_2")),  # GPT-2
    Layout(_at("", attn_norm="attention.output.LayerNorm", ffn_norm="output.LayerNorm")),  # BERT
    Layout(_at("", attn_norm="self_attn_layer_norm", ffn_norm="final_layer_norm")),  # BART, OPT
    Layout(_at("", attn_norm="sa_layer_norm", ffn_norm="output_layer_norm")),  # DistilBERT
    Layout(_at("", attn_norm="layer.0.layer_norm", ffn_norm="layer.2.layer_norm")),  # T5's decoder
    Layout(_at("", attn_norm="layer.0.layer_norm", ffn_norm="layer.1.layer_norm")),  # T5's encoder
)


def transposed(module: nn.Module) -> bool:
    """Whether the weight is stored (d_in, d_out), as GPT-2's Conv1D does."""
    return module.transposed if isinstance(module, FrozenLinear) else type(module).__name__ == "Conv1D"


def is_norm(module: nn.Module) -> bool:
    """Layer norms and RMS norms, torch's, ours and those that model files write for themselves."""
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.endswith("Norm")


def is_projection(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | FrozenLinear) or transposed(module)


def values_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters by name, as stored; a quantised weight turned back."""
    values = {name: value for name, value in module._parameters.items() if value is not None}
    return {"weight": module.weight} | values if isinstance(module, FrozenLinear) else dict(values)


def key_of(module: nn.Module, name: str) -> int:
    """The same number for parameters that are one: tied ones, and those of a module that stands in two places."""
    return id(module) if isinstance(module, FrozenLinear) and name == "weight" else id(module._parameters[name])
