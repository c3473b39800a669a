"""LLaMA: pre-norm RMSNorm, rotary positions, SwiGLU, grouped queries. Touvron et al. 2023, arXiv:2302.13971, section 2.2.

SmolLM2, Mistral (sliding window), Qwen2 (biases on q, k, v) and Baichuan-7B (q, k, v stored as W_pack) are the same parts.
"""

from dataclasses import dataclass, replace
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

CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "baichuan": "Llama"}


@dataclass(frozen=True)
class Llama:
    vocab: int = 32_000
    width: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    hidden: int = 11_008
    head_width: int = 0  # 0: width / heads
    positions: int = 2048
    theta: float = 10_000.0
    eps: float = 1e-6
    act: str = "silu"
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    windows: tuple[int, ...] = ()  # per layer, 0 for none; empty: no layer has one
    dropout: float = 0.0  # on attention probabilities
    kind: str = "llama"  # config.json's model_type
    lm: bool = True  # the language-model head; a classifier's checkpoint has none of its own

    types: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2", "baichuan")
    verified: ClassVar[str] = "transformers 5.23 Llama-, Mistral- and Qwen2ForCausalLM, fp64, T=200, both directions"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "llama-7b": {},
        "llama-13b": {"width": 5120, "layers": 40, "heads": 40, "kv_heads": 40, "hidden": 13_824},
        "smollm2-135m": {
            "vocab": 49_152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "hidden": 1536, "positions": 8192,
            "theta": 100_000.0, "eps": 1e-5, "tied": True,
        },
        "qwen2-0.5b": {
            "vocab": 151_936, "width": 896, "layers": 24, "heads": 14, "kv_heads": 2, "hidden": 4864, "positions": 32_768,
            "theta": 1_000_000.0, "tied": True, "qkv_bias": True, "kind": "qwen2",
        },
        "qwen2-7b": {
            "vocab": 152_064, "width": 3584, "layers": 28, "heads": 28, "kv_heads": 4, "hidden": 18_944, "positions": 32_768,
            "theta": 1_000_000.0, "qkv_bias": True, "kind": "qwen2",
        },
        "baichuan-7b": {"vocab": 64_000, "positions": 4096, "kind": "baichuan"},
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, self.kv_heads, self.head_width, rotary=True)

    @property
    def head(self) -> int:
        return self.head_width or self.width // self.heads

    def build(self) -> Transformer:
        norm = partial(RMSNorm, self.width, self.eps)
        blocks = [
            PreNorm(self._attention(i), GatedFeedForward(self.width, self.hidden, self.act, self.ffn_bias), norm)
            for i in range(self.layers)
        ]
        out = nn.Linear(self.width, self.vocab, bias=False)
        embed = Embedding(nn.Embedding(self.vocab, self.width))
        if self.tied:
            out.weight = embed.token.weight
        rotary = Rotary(self.head, self.theta)
        lm = LanguageHead(out) if self.lm else None
        net = Transformer(self, embed, blocks, norm(), lm, causal=True, width=self.width, rotary=rotary, label_bias=False)
        return initialise(net)

    def _attention(self, layer: int) -> Attention:
        window = self.windows[layer] if self.windows else 0
        return Attention(
            self.width, self.heads, kv_heads=self.kv_heads, head_width=self.head, bias=self.qkv_bias, out_bias=self.out_bias,
            window=window or None, dropout=self.dropout,
        )  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Llama":
        read = Reader(config)
        kind = read("model_type", "llama")
        heads, layers = read("num_attention_heads"), read("num_hidden_layers")
        bias = read("attention_bias", kind == "qwen2") if kind != "mistral" else False
        default_positions = {"mistral": 131_072, "qwen2": 32_768}.get(kind, 2048)
        return cls(
            vocab=read("vocab_size"),
            width=read("hidden_size"),
            layers=layers,
            heads=heads,
            kv_heads=read("num_key_value_heads", None) or heads,
            hidden=read("intermediate_size"),
            head_width=read("head_dim", None) or 0,
            positions=read("max_position_embeddings", None) or read("model_max_length", default_positions),
            theta=read.rope_theta(),
            eps=read("rms_norm_eps", 1e-6),
            act=read.activation("hidden_act", "silu"),
            tied=bool(read("tie_word_embeddings", False)),
            qkv_bias=bias,
            out_bias=bias and kind != "qwen2",
            ffn_bias=bool(read("mlp_bias", False)),
            windows=_windows(read, kind, layers),
            dropout=read("attention_dropout", 0.0),
            kind=kind,
        )

    def fit(self, stored: set[str]) -> "Llama":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        bare = not self.tied and "lm_head.weight" not in stored and bool(stored & {"score.weight", "qa_outputs.weight"})
        return replace(self, lm=not bare)

    def saved(self) -> "Llama":
        """The architecture under whose names it is saved: Baichuan as the LLaMA it is, so that everyone can read it."""
        return replace(self, kind="llama") if self.kind == "baichuan" else self

    def to_config(self) -> dict[str, Any]:
        kind = self.kind
        config = {
            "architectures": [f"{CLASSES[kind]}ForCausalLM"], "model_type": kind, "vocab_size": self.vocab, "hidden_size": self.width,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.hidden, "head_dim": self.head, "max_position_embeddings": self.positions,
            "rope_theta": self.theta, "rope_parameters": {"rope_type": "default", "rope_theta": self.theta}, "rms_norm_eps": self.eps,
            "hidden_act": self.act, "tie_word_embeddings": self.tied, "attention_dropout": self.dropout, "initializer_range": 0.02,
        }  # fmt: skip
        if kind == "llama":
            config |= {"attention_bias": self.qkv_bias, "mlp_bias": self.ffn_bias}
        if kind == "mistral":
            config["sliding_window"] = max(self.windows, default=0) or None
        if kind == "qwen2":
            wide = [bool(w) for w in self.windows or (0,) * self.layers]
            config |= {
                "use_sliding_window": any(wide), "sliding_window": max(self.windows, default=0) or None,
                "layer_types": ["sliding_attention" if w else "full_attention" for w in wide],
            }  # fmt: skip
        return config

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = {"embed.token.weight": Name("model.embed_tokens.weight"), "norm.weight": Name("model.norm.weight")}
        if "lm" in heads and not self.tied:
            table["heads.lm.out.weight"] = Name("lm_head.weight")
        for i in range(self.layers):
            ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
            table |= {f"{ours}attn_norm.weight": Name(f"{theirs}input_layernorm.weight")}
            table |= {f"{ours}ffn_norm.weight": Name(f"{theirs}post_attention_layernorm.weight")}
            for role, path, bias, rows in self._projections():
                table |= linear(ours + role, theirs + path, bias, rows=rows)
        labels = {"classify": "score", "regress": "score", "tag": "score", "spans": "qa_outputs", "choose": "score"}
        for kind in heads.keys() & labels.keys():
            table |= linear(f"heads.{kind}.out", labels[kind], kind in ("tag", "spans"))
        return table

    def _projections(self) -> list[tuple[str, str, bool, tuple[int, int] | None]]:
        """Ours, theirs, whether there is a bias, and the rows where Baichuan's W_pack holds q, k and v on top of each other."""
        if self.kind == "baichuan":
            q, kv = self.heads * self.head, self.kv_heads * self.head
            rows = {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}
            attn = [(f"attn.{role}", "self_attn.W_pack", self.qkv_bias, span) for role, span in rows.items()]
        else:
            attn = [(f"attn.{role}", f"self_attn.{role}_proj", self.qkv_bias, None) for role in "qkv"]
        ffn = [(f"ffn.{role}", f"mlp.{role}_proj", self.ffn_bias, None) for role in ("gate", "up", "down")]
        return [*attn, ("attn.o", "self_attn.o_proj", self.out_bias, None), *ffn]

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for buffers that old files hold."""
        if name.endswith("rotary_emb.inv_freq"):
            return None
        if name.startswith("transformer."):  # LlamaForQuestionAnswering calls its backbone so
            return "model." + name.removeprefix("transformer.")
        return name if name.startswith(("model.", "lm_head.", "score.", "qa_outputs.")) else f"model.{name}"


def _windows(read: Reader, kind: str, layers: int) -> tuple[int, ...]:
    window = read("sliding_window", None) or 0
    if kind == "mistral":
        return (window,) * layers if window else ()
    if not window or not read("use_sliding_window", False):
        return ()
    kinds = read("layer_types", None)
    if kinds is None:
        first = read("max_window_layers", 28)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
