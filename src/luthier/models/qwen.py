"""Qwen, the first: LLaMA with biases on q, k, v, stored as one matrix, under names of its own. Bai et al. 2023, arXiv:2309.16609, section 2.3.

Its feed-forward is c_proj(w1 x * silu(w2 x)), and config.json's intermediate_size is twice the hidden width. Beyond seq_length its own code
changes the rotary base and scales queries by log-n (use_dynamic_ntk, use_logn_attn); that is not here, and longer texts are refused. Saved
as the Qwen2 that it is, so that everyone can read it.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from luthier.core.attention import Attention
from luthier.core.names import Name, linear
from luthier.core.position import Rotary
from luthier.core.transformer import Transformer
from luthier.models._config import Reader, check_heads
from luthier.models._llama import decoder, headless, label_names, llama_alias, llama_names, llama_projections, rotary_config
from luthier.models._rope import write_rope


@dataclass(frozen=True)
class Qwen:
    vocab: int = 151_936
    width: int = 4096
    layers: int = 32
    heads: int = 32
    hidden: int = 11_008  # config.json says twice as much
    positions: int = 8192  # seq_length, the trained length
    theta: float = 10_000.0
    eps: float = 1e-6
    stretched: bool = True  # its own code changes positions and queries beyond the trained length: longer texts are refused
    tied: bool = False
    dropout: float = 0.0  # on attention probabilities
    kind: str = "qwen"  # qwen2: under that model's names
    lm: bool = True  # the language-model head; a classifier's checkpoint has none of its own

    types: ClassVar[tuple[str, ...]] = ("qwen",)
    verified: ClassVar[str] = "outputs of the code published with Qwen-7B; transformers 5.23 Qwen2ForCausalLM (as it is saved), fp64, T=200"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "qwen-1.8b": {"width": 2048, "layers": 24, "heads": 16, "hidden": 5504},
        "qwen-7b": {},
        "qwen-14b": {"vocab": 152_064, "width": 5120, "layers": 40, "heads": 40, "hidden": 13_696, "positions": 2048},
        "qwen-72b": {
            "vocab": 152_064, "width": 8192, "layers": 80, "heads": 64, "hidden": 24_576, "positions": 32_768, "theta": 1_000_000.0,
            "stretched": False,
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, rotary=True)

    @property
    def act(self) -> str:
        return "silu"

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def head(self) -> int:
        return self.width // self.heads

    def build(self) -> Transformer:
        return decoder(self, self._attention, rotary=Rotary(self.head, self.theta), limit=self.positions if self.stretched else None)

    def _attention(self, layer: int) -> Attention:
        return Attention(self.width, self.heads, bias=True, out_bias=False, dropout=self.dropout)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Qwen":
        read = Reader(config)
        heads, width = read("num_attention_heads"), read("hidden_size")
        only = {
            "no_bias": (True, True), "scale_attn_weights": (True, True), "rotary_pct": (1.0, 1.0), "emb_dropout_prob": (0.0, 0.0),
            "kv_channels": (128, width // heads), "use_cache_quantization": (False, False),
        }  # fmt: skip
        for key, (default, value) in only.items():
            if read(key, default) != value:
                raise ValueError(f"config.json asks for {key}={read(key)!r}, which qwen here does not have; it has {value!r}")
        return cls(
            vocab=read("vocab_size"),
            width=width,
            layers=read("num_hidden_layers"),
            heads=heads,
            hidden=read("intermediate_size") // 2,
            positions=read("seq_length", None) or read("max_position_embeddings", 8192),
            theta=float(read("rotary_emb_base", 10_000.0)),
            eps=read("layer_norm_epsilon", 1e-6),
            stretched=bool(read("use_dynamic_ntk", True) or read("use_logn_attn", True)),
            tied=bool(read("tie_word_embeddings", False)),
            dropout=read("attn_dropout_prob", 0.0),
        )

    def fit(self, stored: set[str]) -> "Qwen":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return replace(self, lm=not headless(self, stored))

    def saved(self) -> "Qwen":
        """The architecture under whose names it is saved."""
        return replace(self, kind="qwen2")

    def to_config(self) -> dict[str, Any]:
        if self.kind == "qwen2":
            config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False} | rotary_config(self)
            return config | {"attention_dropout": self.dropout} | write_rope(self.theta, None, self.positions)
        return {
            "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "vocab_size": self.vocab, "hidden_size": self.width,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "kv_channels": self.head,
            "intermediate_size": 2 * self.hidden, "seq_length": self.positions, "max_position_embeddings": self.positions,
            "rotary_emb_base": self.theta, "rotary_pct": 1.0, "layer_norm_epsilon": self.eps, "no_bias": True,
            "use_dynamic_ntk": self.stretched, "use_logn_attn": self.stretched, "scale_attn_weights": True, "emb_dropout_prob": 0.0,
            "attn_dropout_prob": self.dropout, "tie_word_embeddings": self.tied, "initializer_range": 0.02,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        if self.kind == "qwen2":
            return llama_names(self.layers, llama_projections(True, False, False), heads, self.tied)
        table = {"embed.token.weight": Name("transformer.wte.weight"), "norm.weight": Name("transformer.ln_f.weight")}
        if "lm" in heads and not self.tied:
            table["heads.lm.out.weight"] = Name("lm_head.weight")
        paths = {"attn.o": "attn.c_proj", "ffn.gate": "mlp.w2", "ffn.up": "mlp.w1", "ffn.down": "mlp.c_proj", "attn_norm": "ln_1"}
        for i in range(self.layers):
            ours, theirs = f"blocks.{i}.", f"transformer.h.{i}."
            for j, role in enumerate("qkv"):
                table |= linear(f"{ours}attn.{role}", f"{theirs}attn.c_attn", True, rows=(j * self.width, (j + 1) * self.width))
            for role, path in (paths | {"ffn_norm": "ln_2"}).items():
                table |= linear(ours + role, theirs + path, False)
        return table | label_names(heads)

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for buffers that old files hold."""
        if self.kind == "qwen2":
            return llama_alias(name)
        if name.endswith((".inv_freq", ".masked_bias", ".logn_tensor")):
            return None
        return name if name.startswith(("transformer.", "lm_head.", "score.", "qa_outputs.")) else f"transformer.{name}"
