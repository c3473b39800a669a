"""GPT-2: pre-norm LayerNorm, learned positions, tied head. Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", 2.3."""

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
from luthier.models._conv1d import TOPS, conv1d_blocks, head_names


@dataclass(frozen=True)
class GPT2:
    vocab: int = 50_257
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 0  # 0: 4 * width
    positions: int = 1024
    eps: float = 1e-5
    act: str = "gelu_tanh"
    tied: bool = True
    dropout: float = 0.1  # on sublayer outputs
    embed_dropout: float = 0.1
    attention_dropout: float = 0.1

    types: ClassVar[tuple[str, ...]] = ("gpt2",)
    verified: ClassVar[str] = "transformers 5.23 GPT2LMHeadModel, fp64, T=200, both directions"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gpt2": {},
        "gpt2-medium": {"width": 1024, "layers": 24, "heads": 16},
        "gpt2-large": {"width": 1280, "layers": 36, "heads": 20},
        "gpt2-xl": {"width": 1600, "layers": 48, "heads": 25},
    }

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    @property
    def inner(self) -> int:
        return self.hidden or 4 * self.width

    def build(self) -> Transformer:
        norm = partial(nn.LayerNorm, self.width, self.eps)
        blocks = [
            PreNorm(self._attention(), FeedForward(self.width, self.inner, self.act), norm, dropout=self.dropout)
            for _ in range(self.layers)
        ]
        embed = Embedding(nn.Embedding(self.vocab, self.width), nn.Embedding(self.positions, self.width), dropout=self.embed_dropout)
        out = nn.Linear(self.width, self.vocab, bias=False)
        if self.tied:
            out.weight = embed.token.weight
        net = Transformer(
            self,
            embed,
            blocks,
            norm(),
            LanguageHead(out),
            causal=True,
            width=self.width,
            label_bias=("choose",),
            label_dropout=self.dropout,
        )
        return initialise(net, residual_std=0.02 / (2 * self.layers) ** 0.5)

    def _attention(self) -> Attention:
        return Attention(self.width, self.heads, dropout=self.attention_dropout)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GPT2":
        read = Reader(config)
        for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
            if read(key, False):
                raise ValueError(f"config.json asks for {key}, which gpt2 here does not have")
        if not read("scale_attn_weights", True):
            raise ValueError("config.json asks for scale_attn_weights=false, which gpt2 here does not have")
        return cls(
            vocab=read("vocab_size"),
            width=read("n_embd"),
            layers=read("n_layer"),
            heads=read("n_head"),
            hidden=read("n_inner", None) or 0,
            positions=read("n_positions", 1024),
            eps=read("layer_norm_epsilon", 1e-5),
            act=read.activation("activation_function", "gelu_new"),
            tied=bool(read("tie_word_embeddings", True)),
            dropout=read("resid_pdrop", 0.1),
            embed_dropout=read("embd_pdrop", 0.1),
            attention_dropout=read("attn_pdrop", 0.1),
        )

    def fit(self, stored: set[str]) -> "GPT2":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return self

    def saved(self) -> "GPT2":
        return self

    def to_config(self) -> dict[str, Any]:
        return {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": self.vocab, "n_embd": self.width,
            "n_layer": self.layers, "n_head": self.heads, "n_inner": self.hidden or None, "n_positions": self.positions,
            "n_ctx": self.positions, "layer_norm_epsilon": self.eps, "activation_function": STORED.get(self.act, self.act),
            "tie_word_embeddings": self.tied, "resid_pdrop": self.dropout, "embd_pdrop": self.embed_dropout,
            "attn_pdrop": self.attention_dropout, "initializer_range": 0.02,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = {"embed.token.weight": Name("transformer.wte.weight"), "embed.position.weight": Name("transformer.wpe.weight")}
        table |= linear("norm", "transformer.ln_f", True)
        if "lm" in heads and not self.tied:
            table["heads.lm.out.weight"] = Name("lm_head.weight")
        return table | conv1d_blocks(self.layers, self.width) | head_names(heads)

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for the causal-mask buffers that old files hold."""
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            return None
        return name if name.startswith(TOPS) else f"transformer.{name}"
