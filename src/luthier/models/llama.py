"""LLaMA: pre-norm RMSNorm, rotary positions, SwiGLU, grouped queries. Touvron et al. 2023, arXiv:2302.13971, section 2.2.

LLaMA 2: arXiv:2307.09288; 3 to 3.3: arXiv:2407.21783 (scaled rotary positions from 3.1 on). SmolLM2 and TinyLlama are the same. Mistral
(arXiv:2310.06825) has sliding windows, Qwen2 (arXiv:2407.10671) biases on q, k, v, Qwen3 (arXiv:2505.09388) instead a norm on every head's
q and k. Positions of Qwen2 and 2.5 are those of the instructed models.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from luthier.core.attention import Attention
from luthier.core.names import Name
from luthier.core.norm import RMSNorm
from luthier.core.position import Rotary
from luthier.core.scaling import Scaling, scaling
from luthier.core.transformer import Transformer
from luthier.models._config import Reader, check_heads
from luthier.models._llama import decoder, headless, llama_alias, llama_names, llama_projections, rotary_config
from luthier.models._rope import read_rope, write_rope

CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
WINDOWED = ("mistral", "qwen2", "qwen3")


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
    scaling: Scaling | None = None  # of rotary positions, beyond the trained length
    eps: float = 1e-6
    act: str = "silu"
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    windows: tuple[int, ...] = ()  # of the layers in turn, 0 for none; empty: no layer has one
    dropout: float = 0.0  # on attention probabilities
    kind: str = "llama"  # config.json's model_type; qwen3 has the norms of q and k
    lm: bool = True  # the language-model head; a classifier's checkpoint has none of its own

    types: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2", "qwen3")
    verified: ClassVar[str] = (
        "transformers 5.23 Llama- (every rotary scaling), Mistral-, Qwen2- and Qwen3ForCausalLM, fp64, T=200, both directions"
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "llama-7b": {},
        "llama-13b": {"width": 5120, "layers": 40, "heads": 40, "kv_heads": 40, "hidden": 13_824},
        "llama-33b": {"width": 6656, "layers": 60, "heads": 52, "kv_heads": 52, "hidden": 17_920},
        "llama-65b": {"width": 8192, "layers": 80, "heads": 64, "kv_heads": 64, "hidden": 22_016, "eps": 1e-5},
        "llama2-7b": {"positions": 4096, "eps": 1e-5},
        "llama2-13b": {"width": 5120, "layers": 40, "heads": 40, "kv_heads": 40, "hidden": 13_824, "positions": 4096, "eps": 1e-5},
        "llama2-70b": {"width": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "hidden": 28_672, "positions": 4096, "eps": 1e-5},
        "llama3-8b": {"vocab": 128_256, "kv_heads": 8, "hidden": 14_336, "positions": 8192, "theta": 500_000.0, "eps": 1e-5},
        "llama3-70b": {
            "vocab": 128_256, "width": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "hidden": 28_672, "positions": 8192,
            "theta": 500_000.0, "eps": 1e-5,
        },
        "llama3.1-8b": {
            "vocab": 128_256, "kv_heads": 8, "hidden": 14_336, "positions": 131_072, "theta": 500_000.0, "eps": 1e-5,
            "scaling": {"kind": "llama3", "factor": 8.0, "trained": 8192},
        },
        "llama3.1-70b": {
            "vocab": 128_256, "width": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "hidden": 28_672, "positions": 131_072,
            "theta": 500_000.0, "eps": 1e-5, "scaling": {"kind": "llama3", "factor": 8.0, "trained": 8192},
        },
        "llama3.1-405b": {
            "vocab": 128_256, "width": 16_384, "layers": 126, "heads": 128, "kv_heads": 8, "hidden": 53_248, "positions": 131_072,
            "theta": 500_000.0, "eps": 1e-5, "scaling": {"kind": "llama3", "factor": 8.0, "trained": 8192},
        },
        "llama3.2-1b": {
            "vocab": 128_256, "width": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "hidden": 8192, "positions": 131_072,
            "theta": 500_000.0, "eps": 1e-5, "tied": True, "scaling": {"kind": "llama3", "factor": 32.0, "trained": 8192},
        },
        "llama3.2-3b": {
            "vocab": 128_256, "width": 3072, "layers": 28, "heads": 24, "kv_heads": 8, "hidden": 8192, "positions": 131_072,
            "theta": 500_000.0, "eps": 1e-5, "tied": True, "scaling": {"kind": "llama3", "factor": 32.0, "trained": 8192},
        },
        "llama3.3-70b": {
            "vocab": 128_256, "width": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "hidden": 28_672, "positions": 131_072,
            "theta": 500_000.0, "eps": 1e-5, "scaling": {"kind": "llama3", "factor": 8.0, "trained": 8192},
        },
        "smollm2-135m": {
            "vocab": 49_152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "hidden": 1536, "positions": 8192, "theta": 100_000.0,
            "eps": 1e-5, "tied": True,
        },
        "smollm2-360m": {
            "vocab": 49_152, "width": 960, "layers": 32, "heads": 15, "kv_heads": 5, "hidden": 2560, "positions": 8192,
            "theta": 100_000.0, "eps": 1e-5, "tied": True,
        },
        "smollm2-1.7b": {
            "vocab": 49_152, "width": 2048, "layers": 24, "heads": 32, "kv_heads": 32, "hidden": 8192, "positions": 8192,
            "theta": 130_000.0, "eps": 1e-5, "tied": True,
        },
        "tinyllama-1.1b": {"width": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "hidden": 5632, "eps": 1e-5},
        "mistral-7b-v0.1": {"kv_heads": 8, "hidden": 14_336, "positions": 32_768, "eps": 1e-5, "windows": (4096,), "kind": "mistral"},
        "mistral-7b-v0.2": {"kv_heads": 8, "hidden": 14_336, "positions": 32_768, "theta": 1_000_000.0, "eps": 1e-5, "kind": "mistral"},
        "mistral-7b-v0.3": {
            "vocab": 32_768, "kv_heads": 8, "hidden": 14_336, "positions": 32_768, "theta": 1_000_000.0, "eps": 1e-5, "kind": "mistral",
        },
        "mistral-nemo-12b": {
            "vocab": 131_072, "width": 5120, "layers": 40, "heads": 32, "kv_heads": 8, "hidden": 14_336, "head_width": 128,
            "positions": 131_072, "theta": 1_000_000.0, "eps": 1e-5, "kind": "mistral",
        },
        "qwen2-0.5b": {
            "vocab": 151_936, "width": 896, "layers": 24, "heads": 14, "kv_heads": 2, "hidden": 4864, "positions": 32_768,
            "theta": 1_000_000.0, "tied": True, "qkv_bias": True, "kind": "qwen2",
        },
        "qwen2-1.5b": {
            "vocab": 151_936, "width": 1536, "layers": 28, "heads": 12, "kv_heads": 2, "hidden": 8960, "positions": 32_768,
            "theta": 1_000_000.0, "tied": True, "qkv_bias": True, "kind": "qwen2",
        },
        "qwen2-7b": {
            "vocab": 152_064, "width": 3584, "layers": 28, "heads": 28, "kv_heads": 4, "hidden": 18_944, "positions": 32_768,
            "theta": 1_000_000.0, "qkv_bias": True, "kind": "qwen2",
        },
        "qwen2-72b": {
            "vocab": 152_064, "width": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "hidden": 29_568, "positions": 32_768,
            "theta": 1_000_000.0, "qkv_bias": True, "kind": "qwen2",
        },
        "qwen2.5-0.5b": {
            "vocab": 151_936, "width": 896, "layers": 24, "heads": 14, "kv_heads": 2, "hidden": 4864, "positions": 32_768,
            "theta": 1_000_000.0, "tied": True, "qkv_bias": True, "kind": "qwen2",
        },
        "qwen2.5-1.5b": {
            "vocab": 151_936, "width": 1536, "layers": 28, "heads": 12, "kv_heads": 2, "hidden": 8960, "positions": 32_768,
            "theta": 1_000_000.0, "tied": True, "qkv_bias": True, "kind": "qwen2",
        },
        "qwen2.5-3b": {
            "vocab": 151_936, "width": 2048, "layers": 36, "heads": 16, "kv_heads": 2, "hidden": 11_008, "positions": 32_768,
            "theta": 1_000_000.0, "tied": True, "qkv_bias": True, "kind": "qwen2",
        },
        "qwen2.5-7b": {
            "vocab": 152_064, "width": 3584, "layers": 28, "heads": 28, "kv_heads": 4, "hidden": 18_944, "positions": 32_768,
            "theta": 1_000_000.0, "qkv_bias": True, "kind": "qwen2",
        },
        "qwen2.5-14b": {
            "vocab": 152_064, "width": 5120, "layers": 48, "heads": 40, "kv_heads": 8, "hidden": 13_824, "positions": 32_768,
            "theta": 1_000_000.0, "qkv_bias": True, "kind": "qwen2",
        },
        "qwen2.5-32b": {
            "vocab": 152_064, "width": 5120, "layers": 64, "heads": 40, "kv_heads": 8, "hidden": 27_648, "positions": 32_768,
            "theta": 1_000_000.0, "qkv_bias": True, "kind": "qwen2",
        },
        "qwen2.5-72b": {
            "vocab": 152_064, "width": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "hidden": 29_568, "positions": 32_768,
            "theta": 1_000_000.0, "qkv_bias": True, "kind": "qwen2",
        },
        "qwen3-0.6b": {
            "vocab": 151_936, "width": 1024, "layers": 28, "heads": 16, "kv_heads": 8, "hidden": 3072, "head_width": 128,
            "positions": 40_960, "theta": 1_000_000.0, "tied": True, "kind": "qwen3",
        },
        "qwen3-1.7b": {
            "vocab": 151_936, "width": 2048, "layers": 28, "heads": 16, "kv_heads": 8, "hidden": 6144, "head_width": 128,
            "positions": 40_960, "theta": 1_000_000.0, "tied": True, "kind": "qwen3",
        },
        "qwen3-4b": {
            "vocab": 151_936, "width": 2560, "layers": 36, "heads": 32, "kv_heads": 8, "hidden": 9728, "head_width": 128,
            "positions": 40_960, "theta": 1_000_000.0, "tied": True, "kind": "qwen3",
        },
        "qwen3-8b": {
            "vocab": 151_936, "width": 4096, "layers": 36, "heads": 32, "kv_heads": 8, "hidden": 12_288, "head_width": 128,
            "positions": 40_960, "theta": 1_000_000.0, "kind": "qwen3",
        },
        "qwen3-14b": {
            "vocab": 151_936, "width": 5120, "layers": 40, "heads": 40, "kv_heads": 8, "hidden": 17_408, "head_width": 128,
            "positions": 40_960, "theta": 1_000_000.0, "kind": "qwen3",
        },
        "qwen3-32b": {
            "vocab": 151_936, "width": 5120, "layers": 64, "heads": 64, "kv_heads": 8, "hidden": 25_600, "head_width": 128,
            "positions": 40_960, "theta": 1_000_000.0, "kind": "qwen3",
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, self.kv_heads, self.head_width, rotary=True)
        object.__setattr__(self, "scaling", scaling(self.scaling))
        if self.kind == "qwen2" and not self.qkv_bias:
            raise ValueError("kind='qwen2' has biases on q, k and v, and config.json could not say otherwise; set qkv_bias: true")
        if any(self.windows) and self.kind not in WINDOWED:
            raise ValueError(f"kind={self.kind!r} has no sliding windows, and config.json could not say so; {', '.join(WINDOWED)} have")

    @property
    def head(self) -> int:
        return self.head_width or self.width // self.heads

    def build(self) -> Transformer:
        return decoder(self, self._attention, ffn_bias=self.ffn_bias, rotary=Rotary(self.head, self.theta, scaling=self.scaling))

    def _attention(self, layer: int) -> Attention:
        return Attention(
            self.width, self.heads, kv_heads=self.kv_heads, head_width=self.head, bias=self.qkv_bias, out_bias=self.out_bias,
            window=self._window(layer) or None, dropout=self.dropout, norm=partial(RMSNorm, eps=self.eps) if self.kind == "qwen3" else None,
        )  # fmt: skip

    def _window(self, layer: int) -> int:
        return self.windows[layer % len(self.windows)] if self.windows else 0

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Llama":
        read = Reader(config)
        kind = read("model_type", "llama")
        heads, layers = read("num_attention_heads"), read("num_hidden_layers")
        bias = read("attention_bias", kind == "qwen2") if kind != "mistral" else False
        positions = read("max_position_embeddings", {"mistral": 131_072, "qwen2": 32_768, "qwen3": 32_768}.get(kind, 2048))
        theta, scaling = read_rope(read, positions)
        return cls(
            vocab=read("vocab_size"),
            width=read("hidden_size"),
            layers=layers,
            heads=heads,
            kv_heads=read("num_key_value_heads", None) or heads,
            hidden=read("intermediate_size"),
            head_width=read("head_dim", None) or (128 if kind == "qwen3" else 0),
            positions=positions,
            theta=theta,
            scaling=scaling,
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
        return replace(self, lm=not headless(self, stored))

    def saved(self) -> "Llama":
        return self

    def to_config(self) -> dict[str, Any]:
        windows = [self._window(i) for i in range(self.layers)]
        if len(set(windows) - {0}) > 1 or (self.kind == "mistral" and len(set(windows)) > 1):
            raise ValueError(f"config.json of a {self.kind} model holds one window, and the layers' are {sorted(set(windows))}")
        config = {"architectures": [f"{CLASSES[self.kind]}ForCausalLM"], "model_type": self.kind} | rotary_config(self)
        config |= {"head_dim": self.head, "attention_dropout": self.dropout} | write_rope(self.theta, self.scaling, self.positions)
        if self.kind in ("llama", "qwen3"):
            config["attention_bias"] = self.qkv_bias
        if self.kind == "llama":
            config["mlp_bias"] = self.ffn_bias
        if self.kind in WINDOWED:
            config["sliding_window"] = max(windows) or None
        if self.kind in ("qwen2", "qwen3"):
            kinds = ["sliding_attention" if window else "full_attention" for window in windows]
            config |= {"use_sliding_window": any(windows), "layer_types": kinds}
        return config

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = llama_names(self.layers, llama_projections(self.qkv_bias, self.out_bias, self.ffn_bias), heads, self.tied)
        if self.kind == "qwen3":
            for i in range(self.layers):
                for role in ("q_norm", "k_norm"):
                    table[f"blocks.{i}.attn.{role}.weight"] = Name(f"model.layers.{i}.self_attn.{role}.weight")
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for buffers that old files hold."""
        return llama_alias(name)


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
