"""GPT-3: GPT-2 with every second layer's attention in a band. Brown et al. 2020, arXiv:2005.14165, section 2.1 and table 2.1.

The paper does not say how wide the band is (256 here, as in GPT-Neo) and no weights were published. GPT-Neo, whose weights were, is the same
without a bias on query, key and value and without the scale of attention scores. Table 2.1 gives its XL 24 heads of 128, which would be
1.5 billion parameters; its 1.3 billion are those of 16. Its 13B has 40 heads of 128 beside a width of 5140.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from luthier.core.attention import Attention
from luthier.core.block import PreNorm
from luthier.core.feedforward import FeedForward
from luthier.core.heads import LanguageHead
from luthier.core.names import Name, linear
from luthier.core.transformer import Embedding, Transformer, initialise
from luthier.models._config import STORED, Reader, check_heads


@dataclass(frozen=True)
class GPT3:
    vocab: int = 50_257
    width: int = 768
    layers: int = 12
    heads: int = 12
    head_width: int = 0  # 0: width / heads
    hidden: int = 0  # 0: 4 * width
    positions: int = 2048
    windows: tuple[int, ...] = (0, 256)  # of the layers in turn: a query sees so many keys, its own among them; 0 all
    eps: float = 1e-5
    act: str = "gelu_tanh"
    qkv_bias: bool = True
    scaled: bool = True  # attention scores by head_width^-0.5
    dropout: float = 0.0  # on sublayer outputs
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0

    types: ClassVar[tuple[str, ...]] = ("gpt_neo", "gpt3")
    verified: ClassVar[str] = (
        "GPT-Neo's form: transformers 5.23 GPTNeoForCausalLM, fp64, T=200, both directions; GPT-3's own: its count only"
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt3-small": {},
        "gpt3-medium": {"width": 1024, "layers": 24, "heads": 16},
        "gpt3-large": {"width": 1536, "layers": 24, "heads": 16},
        "gpt3-xl": {"width": 2048, "layers": 24, "heads": 16},
        "gpt3-2.7b": {"width": 2560, "layers": 32, "heads": 32},
        "gpt3-6.7b": {"width": 4096, "layers": 32, "heads": 32},
        "gpt3-13b": {"width": 5140, "layers": 40, "heads": 40, "head_width": 128},
        "gpt3-175b": {"width": 12_288, "layers": 96, "heads": 96},
        "gpt-neo-125m": {"qkv_bias": False, "scaled": False},
        "gpt-neo-1.3b": {"width": 2048, "layers": 24, "heads": 16, "qkv_bias": False, "scaled": False},
        "gpt-neo-2.7b": {"width": 2560, "layers": 32, "heads": 20, "qkv_bias": False, "scaled": False},
    }

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, head_width=self.head_width)

    @property
    def head(self) -> int:
        return self.head_width or self.width // self.heads

    @property
    def inner(self) -> int:
        return self.hidden or 4 * self.width

    def build(self) -> Transformer:
        norm = partial(nn.LayerNorm, self.width, self.eps)
        blocks = [
            PreNorm(self._attention(i), FeedForward(self.width, self.inner, self.act), norm, dropout=self.dropout)
            for i in range(self.layers)
        ]
        embed = Embedding(nn.Embedding(self.vocab, self.width), nn.Embedding(self.positions, self.width), dropout=self.embed_dropout)
        out = nn.Linear(self.width, self.vocab, bias=False)
        out.weight = embed.token.weight
        net = Transformer(self, embed, blocks, norm(), LanguageHead(out), causal=True, width=self.width, label_bias=False)
        return initialise(net, residual_std=0.02 / (2 * self.layers) ** 0.5)

    def _attention(self, layer: int) -> Attention:
        return Attention(
            self.width, self.heads, head_width=self.head, bias=self.qkv_bias, out_bias=True, scale=None if self.scaled else 1.0,
            window=self.windows[layer % len(self.windows)] or None if self.windows else None, dropout=self.attention_dropout,
        )  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GPT3":
        read = Reader(config)
        layers, band = read("num_layers"), read("window_size", 256)
        kinds = [kind for group, times in read("attention_types", [[["global", "local"], layers // 2]]) for kind in group * times]
        if len(kinds) != layers or set(kinds) - {"global", "local"}:
            raise ValueError(f"config.json's attention_types name {len(kinds)} layers, global or local, and num_layers is {layers}")
        if not read("tie_word_embeddings", True):
            raise ValueError("config.json asks for tie_word_embeddings=false, which gpt3 does not have")
        return cls(
            vocab=read("vocab_size"),
            width=read("hidden_size"),
            layers=layers,
            heads=read("num_heads"),
            head_width=read("head_dim", 0),
            hidden=read("intermediate_size", None) or 0,
            positions=read("max_position_embeddings", 2048),
            windows=tuple(band if kind == "local" else 0 for kind in kinds),
            eps=read("layer_norm_epsilon", 1e-5),
            act=read.activation("activation_function", "gelu_new"),
            qkv_bias=bool(read("attention_bias", False)),
            scaled=bool(read("scale_attention", False)),
            dropout=read("resid_dropout", 0.0),
            embed_dropout=read("embed_dropout", 0.0),
            attention_dropout=read("attention_dropout", 0.0),
        )

    def fit(self, stored: set[str]) -> "GPT3":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return self

    def saved(self) -> "GPT3":
        return self

    def to_config(self) -> dict[str, Any]:
        """GPT-Neo's where it is one; GPT-3's own form has its names and says so by another model_type, which is ours alone."""
        neo = not (self.qkv_bias or self.scaled or self.head * self.heads != self.width)
        windows = [self.windows[i % len(self.windows)] if self.windows else 0 for i in range(self.layers)]
        if len(set(windows) - {0}) > 1:
            raise ValueError(f"GPT-Neo's config.json holds one width of band, and there are {sorted(set(windows) - {0})}")
        config = {
            "architectures": ["GPTNeoForCausalLM" if neo else "GPT3ForCausalLM"], "model_type": "gpt_neo" if neo else "gpt3",
            "vocab_size": self.vocab, "hidden_size": self.width, "num_layers": self.layers, "num_heads": self.heads,
            "intermediate_size": self.hidden or None, "max_position_embeddings": self.positions,
            "attention_types": [[["local" if window else "global"], 1] for window in windows], "window_size": max(windows) or 256,
            "layer_norm_epsilon": self.eps, "activation_function": STORED.get(self.act, self.act), "resid_dropout": self.dropout,
            "embed_dropout": self.embed_dropout, "attention_dropout": self.attention_dropout, "initializer_range": 0.02,
        }  # fmt: skip
        return config if neo else config | {"attention_bias": self.qkv_bias, "scale_attention": self.scaled, "head_dim": self.head}

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = {"embed.token.weight": Name("transformer.wte.weight"), "embed.position.weight": Name("transformer.wpe.weight")}
        table |= linear("norm", "transformer.ln_f", True)
        roles = {
            "attn.q": "attn.attention.q_proj", "attn.k": "attn.attention.k_proj", "attn.v": "attn.attention.v_proj",
            "attn.o": "attn.attention.out_proj", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj", "attn_norm": "ln_1", "ffn_norm": "ln_2",
        }  # fmt: skip
        for i in range(self.layers):
            for ours, theirs in roles.items():
                bias = self.qkv_bias or ours not in ("attn.q", "attn.k", "attn.v")
                table |= linear(f"blocks.{i}.{ours}", f"transformer.h.{i}.{theirs}", bias)
        labels = {"classify": "score", "regress": "score", "tag": "classifier", "spans": "qa_outputs", "choose": "score"}
        for kind in heads.keys() & labels.keys():
            table |= linear(f"heads.{kind}.out", labels[kind], kind in ("tag", "spans"))
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for the causal-mask buffers that old files hold."""
        if name.endswith((".attention.bias", ".attention.masked_bias")):
            return None
        return name if name.startswith(("transformer.", "lm_head.", "score.", "classifier.", "qa_outputs.")) else f"transformer.{name}"
