"""A language model that fills in masks instead of writing from left to right: LLaMA without the causal mask. Nie et al. 2025, arXiv:2502.09992.

LLaDA-8B's sizes and names. It learns by objective diffuse (section 2.2) and writes by core.unmask (section 2.4, appendix A.3).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from luthier.core.attention import Attention
from luthier.core.block import PreNorm
from luthier.core.feedforward import GatedFeedForward
from luthier.core.heads import LanguageHead
from luthier.core.names import Name, linear
from luthier.core.norm import RMSNorm
from luthier.core.position import Rotary
from luthier.core.transformer import Embedding, Transformer, initialise
from luthier.models._config import Reader, check_heads

# What LLaDA's code can switch, and what its published models say.
SWITCHES = {
    "block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu", "rope": True, "alibi": False, "include_bias": False,
    "include_qkv_bias": False, "attention_layer_norm": False, "scale_logits": False, "multi_query_attention": None,
}  # fmt: skip
ROLES = {
    "attn.q": "q_proj", "attn.k": "k_proj", "attn.v": "v_proj", "attn.o": "attn_out", "ffn.gate": "ff_proj", "ffn.up": "up_proj",
    "ffn.down": "ff_out", "attn_norm": "attn_norm", "ffn_norm": "ff_norm",
}  # fmt: skip


@dataclass(frozen=True)
class DiffusionLM:
    vocab: int = 126_464
    width: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    hidden: int = 12_288
    positions: int = 4096
    theta: float = 500_000.0
    eps: float = 1e-5
    act: str = "silu"
    tied: bool = False
    mask: int = 126_336  # the token that is filled in
    dropout: float = 0.0  # on attention probabilities

    types: ClassVar[tuple[str, ...]] = ("llada",)
    verified: ClassVar[str] = (
        "transformers 5.23 LlamaForCausalLM with every token seen, fp64, T=200, both directions; weights were not loaded"
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {"llada-8b": {}}

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, self.kv_heads, rotary=True)
        if not 0 <= self.mask < self.vocab:
            raise ValueError(f"mask={self.mask} is none of vocab={self.vocab} tokens; take a tokenizer with a mask token, or give mask")

    def build(self) -> Transformer:
        norm = partial(RMSNorm, self.width, self.eps)
        blocks = [
            PreNorm(self._attention(), GatedFeedForward(self.width, self.hidden, self.act, bias=False), norm) for _ in range(self.layers)
        ]
        embed, out = Embedding(nn.Embedding(self.vocab, self.width)), nn.Linear(self.width, self.vocab, bias=False)
        if self.tied:
            out.weight = embed.token.weight
        rotary = Rotary(self.width // self.heads, self.theta)
        net = Transformer(self, embed, blocks, norm(), LanguageHead(out), causal=False, width=self.width, rotary=rotary)
        net.fills = self.mask
        return initialise(net, residual_std=0.02 / (2 * self.layers) ** 0.5)

    def _attention(self) -> Attention:
        return Attention(self.width, self.heads, kv_heads=self.kv_heads, bias=False, dropout=self.dropout)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "DiffusionLM":
        read = Reader(config)
        for key, value in SWITCHES.items():
            if read(key, value) != value:
                raise ValueError(f"config.json asks for {key}={read(key)!r}, which diffusion_lm here does not have")
        heads = read("n_heads")
        return cls(
            vocab=read("embedding_size", None) or read("vocab_size"),
            width=read("d_model"),
            layers=read("n_layers"),
            heads=heads,
            kv_heads=read("n_kv_heads", None) or heads,
            hidden=read("mlp_hidden_size"),
            positions=read("max_sequence_length", 4096),
            theta=read("rope_theta", 10_000.0),
            eps=read("rms_norm_eps", 1e-5),
            tied=bool(read("weight_tying", False)),
            mask=read("mask_token_id"),
            dropout=read("attention_dropout", 0.0),
        )

    def fit(self, stored: set[str]) -> "DiffusionLM":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return self

    def saved(self) -> "DiffusionLM":
        return self

    def to_config(self) -> dict[str, Any]:
        return SWITCHES | {
            "architectures": ["LLaDAModelLM"], "model_type": "llada", "vocab_size": self.vocab, "embedding_size": self.vocab,
            "d_model": self.width, "n_layers": self.layers, "n_heads": self.heads, "n_kv_heads": self.kv_heads,
            "mlp_hidden_size": self.hidden, "max_sequence_length": self.positions, "rope_theta": self.theta, "rms_norm_eps": self.eps,
            "weight_tying": self.tied, "mask_token_id": self.mask, "attention_dropout": self.dropout,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        top = "model.transformer."
        table = {"embed.token.weight": Name(f"{top}wte.weight"), "norm.weight": Name(f"{top}ln_f.weight")}
        if "lm" in heads and not self.tied:
            table["heads.lm.out.weight"] = Name(f"{top}ff_out.weight")
        for i in range(self.layers):
            for ours, theirs in ROLES.items():
                table |= linear(f"blocks.{i}.{ours}", f"{top}blocks.{i}.{theirs}", False)
        if heads.keys() & {"classify", "regress", "choose"}:
            table |= linear("pooler.dense", "pooler.dense", True)
        for kind in heads.keys() & {"classify", "regress", "choose", "tag", "spans"}:
            table |= linear(f"heads.{kind}.out", "qa_outputs" if kind == "spans" else "classifier", True)
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor."""
        return name if name.startswith(("model.", "pooler.", "classifier.", "qa_outputs.")) else f"model.{name}"
