"""GPT-1: a decoder with post-norm and learned positions. Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", 4.1.

No norm follows the embedding or the last block; published files call the tanh form of GELU "gelu". Fine-tuning with the auxiliary loss of
section 3.2 is objective classify (or choose) with lm_weight 0.5; the input forms of section 3.3 are those of the tokenizer's template.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from luthier.core.attention import Attention
from luthier.core.block import PostNorm
from luthier.core.feedforward import FeedForward
from luthier.core.heads import LanguageHead
from luthier.core.names import Name
from luthier.core.transformer import Embedding, Transformer, initialise
from luthier.models._config import Reader, check_heads
from luthier.models._conv1d import TOPS, conv1d_blocks, head_names

ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}  # theirs to ours


@dataclass(frozen=True)
class GPT:
    vocab: int = 40_478
    width: int = 768
    layers: int = 12
    heads: int = 12
    positions: int = 512
    eps: float = 1e-5
    act: str = "gelu_tanh"
    dropout: float = 0.1  # on sublayer outputs
    embed_dropout: float = 0.1
    attention_dropout: float = 0.1

    types: ClassVar[tuple[str, ...]] = ("openai-gpt",)
    verified: ClassVar[str] = "transformers 5.23 OpenAIGPTLMHeadModel and OpenAIGPTDoubleHeadsModel, fp64, T=200, both directions"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"openai-gpt": {}}

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    def build(self) -> Transformer:
        norm = partial(nn.LayerNorm, self.width, self.eps)
        blocks = [
            PostNorm(self._attention(), FeedForward(self.width, 4 * self.width, self.act), norm, dropout=self.dropout)
            for _ in range(self.layers)
        ]
        embed = Embedding(nn.Embedding(self.vocab, self.width), nn.Embedding(self.positions, self.width), dropout=self.embed_dropout)
        out = nn.Linear(self.width, self.vocab, bias=False)
        out.weight = embed.token.weight
        net = Transformer(
            self, embed, blocks, None, LanguageHead(out), causal=True, width=self.width, label_bias=("choose",), label_dropout=self.dropout
        )
        return initialise(net)

    def _attention(self) -> Attention:
        return Attention(self.width, self.heads, dropout=self.attention_dropout)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GPT":
        read = Reader(config)
        act = read("afn", "gelu")
        if act not in ACTIVATIONS:
            raise ValueError(f"config.json asks for afn={act!r}, which gpt does not have; there are {', '.join(ACTIVATIONS)}")
        if not read("tie_word_embeddings", True):
            raise ValueError("config.json asks for tie_word_embeddings=false, which gpt does not have")
        return cls(
            vocab=read("vocab_size"),
            width=read("n_embd"),
            layers=read("n_layer"),
            heads=read("n_head"),
            positions=read("n_positions", 512),
            eps=read("layer_norm_epsilon", 1e-5),
            act=ACTIVATIONS[act],
            dropout=read("resid_pdrop", 0.1),
            embed_dropout=read("embd_pdrop", 0.1),
            attention_dropout=read("attn_pdrop", 0.1),
        )

    def fit(self, stored: set[str]) -> "GPT":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return self

    def saved(self) -> "GPT":
        return self

    def to_config(self) -> dict[str, Any]:
        stored = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
        if self.act not in stored:
            raise ValueError(f"openai-gpt's config.json has no name for the activation {self.act!r}; there are {', '.join(stored)}")
        return {
            "architectures": ["OpenAIGPTLMHeadModel"], "model_type": "openai-gpt", "vocab_size": self.vocab, "n_embd": self.width,
            "n_layer": self.layers, "n_head": self.heads, "n_positions": self.positions, "layer_norm_epsilon": self.eps,
            "afn": stored[self.act], "tie_word_embeddings": True, "resid_pdrop": self.dropout, "embd_pdrop": self.embed_dropout,
            "attn_pdrop": self.attention_dropout, "initializer_range": 0.02,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = {
            "embed.token.weight": Name("transformer.tokens_embed.weight"),
            "embed.position.weight": Name("transformer.positions_embed.weight"),
        }
        return table | conv1d_blocks(self.layers, self.width) | head_names(heads)

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for the buffers that old files hold."""
        if name.endswith((".attn.bias", "position_ids")):
            return None
        return name if name.startswith(TOPS) else f"transformer.{name}"
