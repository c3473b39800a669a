"""Q-Former: a few learned queries read a picture's states, and a text beside them. Li et al. 2023, arXiv:2301.12597, section 3.1.

BERT's blocks; queries and text share self-attention, every second block lets the queries look at the picture, and each of the two has a
feed-forward of its own. Queries alone, a text alone, or both; what sees what between the two is `allow`'s.

B rows, Q queries, T tokens of the text, S states of the picture, D width
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.attention import Attention, Mask
from luthier.core.block import Block, Context
from luthier.core.feedforward import FeedForward
from luthier.core.names import Name, linear
from luthier.core.transformer import Transformer, initialise
from luthier.models._config import STORED, Reader, check_heads

ROLES = {
    "attn.q": "attention.attention.query", "attn.k": "attention.attention.key", "attn.v": "attention.attention.value",
    "attn.o": "attention.output.dense", "attn_norm": "attention.output.LayerNorm", "ffn.up": "intermediate_query.dense",
    "ffn.down": "output_query.dense", "ffn_norm": "output_query.LayerNorm",
}  # fmt: skip
CROSS = {
    ours.replace("attn", "cross"): theirs.replace("attention", "crossattention", 1) for ours, theirs in ROLES.items() if "attn" in ours
}
TEXT = {"text_ffn.up": "intermediate.dense", "text_ffn.down": "output.dense", "text_norm": "output.LayerNorm"}


class TwoBlock(Block):
    """Post-norm; behind self-attention the first `queries` states and the others go ways of their own."""

    def __init__(
        self,
        attn: Attention,
        ffn: nn.Module,
        text_ffn: nn.Module | None,
        norm: Callable[[], nn.Module],
        cross: Attention | None,
        dropout: float,
    ):
        super().__init__(attn, ffn, norm, cross, dropout)
        self.text_ffn, self.text_norm = text_ffn, None if text_ffn is None else norm()

    def forward(self, x: Tensor, context: Context, layer: int) -> Tensor:
        x = self.attn_norm(x + self.attention(x, context, layer))
        queries, text = x.tensor_split([len(context.extra["queries"])], 1)
        if queries.shape[1]:
            if self.cross_norm is not None:
                queries = self.cross_norm(queries + self.crossing(queries, context, layer))
            queries = self.ffn_norm(queries + self.dropout(self.ffn(queries)))
        if text.shape[1]:
            if self.text_ffn is None or self.text_norm is None:
                raise ValueError("this Q-Former has no feed-forward for texts (use_qformer_text_input); give it queries only")
            text = self.text_norm(text + self.dropout(self.text_ffn(text)))
        return torch.cat([queries, text], 1)


class Input(nn.Module):
    """Queries, then the text's tokens with their places; normed together."""

    def __init__(self, config: "QFormer"):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, config.queries, config.width)) if config.queries else None
        self.token = nn.Embedding(config.vocab, config.width) if config.vocab else None
        self.position = nn.Embedding(config.positions, config.width) if config.vocab else None
        self.norm, self.dropout = nn.LayerNorm(config.width, config.eps), nn.Dropout(config.dropout)

    def forward(self, queries_BQD: Tensor | None, ids_BT: Tensor | None) -> Tensor:
        parts = [] if queries_BQD is None else [queries_BQD]
        if ids_BT is not None:
            if self.token is None or self.position is None:
                raise ValueError("this Q-Former has no embedding of tokens; give it queries only")
            parts.append(self.token(ids_BT) + self.position.weight[: ids_BT.shape[1]])
        return self.dropout(self.norm(torch.cat(parts, 1)))


class Querying(Transformer):
    """A Transformer whose input are queries, a text, or both."""

    embed: Any

    def enter(self, ids=None, mask=None, memory=None, memory_mask=None, queries=None, allow=None, **others):  # type: ignore[override]
        """The normed input and what all blocks share. ids None: no text; memory None: no queries, unless they are given."""
        if queries is None and memory is not None:
            if self.embed.query is None:
                raise ValueError("this Q-Former has no queries of its own; give them: queries (B, Q, D)")
            queries = self.embed.query.expand(len(memory), -1, -1)
        count = 0 if queries is None else queries.shape[1]
        x = self.embed(queries, ids)
        keys = None if mask is None else torch.cat([mask.new_ones(len(mask), count), mask], 1).bool()
        seen = Mask(keys=None if memory_mask is None else memory_mask.bool())
        return x, Context(Mask(keys=keys, allow=allow), None, None, memory, seen, extra={"queries": x.new_empty(count)})

    def hidden(self, ids=None, mask=None, **inputs):  # type: ignore[override]
        """(B, Q + T, D). ids (B, T) and mask (B, T): a text; memory (B, S, S's width) and memory_mask (B, S): a picture's states, which the
        queries look at; queries (B, Q, D): others than the learned ones; allow (B or 1, 1, Q + T, Q + T) bool.
        """
        x, context = self.enter(ids, mask, **inputs)
        for x in self.layers(x, context):  # noqa: B007, B020  (the last one)
            pass
        return x

    @property
    def vocab(self) -> int:  # type: ignore[override]
        return 0 if self.embed.token is None else self.embed.token.num_embeddings

    def add_head(self, kind: str, labels: int) -> None:
        raise ValueError("a Q-Former has no heads of its own; it is part of a model for pictures and texts")


@dataclass(frozen=True)
class QFormer:
    vocab: int = 0  # of texts; 0: queries only
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 512
    queries: int = 32
    memory: int = 1408  # width of the picture's states
    every: int = 2  # of so many blocks the first one looks at the picture
    text: bool = False  # whether texts have feed-forwards
    eps: float = 1e-12
    act: str = "gelu"
    dropout: float = 0.1  # on the embedding and on sublayer outputs
    attention_dropout: float = 0.1

    types: ClassVar[tuple[str, ...]] = ("blip_2_qformer",)
    verified: ClassVar[str] = "transformers 5.23 Blip2QFormerModel and, with texts, Blip2ForImageTextRetrieval, fp64"
    untrained: ClassVar[str] = "no run file trains it alone: it reads the states of a vision model; blip2 has both"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"blip2-qformer": {}, "blip2-qformer-text": {"vocab": 30_523, "text": True}}

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        if self.every < 1:
            raise ValueError(f"every={self.every} must be 1 at least: of so many blocks the first one looks at the picture")

    def build(self) -> Querying:
        blocks = [self._block(i) for i in range(self.layers)]
        embed: Any = Input(self)
        net = initialise(Querying(self, embed, blocks, None, None, causal=False, width=self.width))
        if embed.query is not None:
            nn.init.normal_(embed.query, std=net.init_std)
        return net  # type: ignore[return-value]

    def _block(self, layer: int) -> TwoBlock:
        attention = partial(Attention, self.width, self.heads, dropout=self.attention_dropout)
        feed = partial(FeedForward, self.width, self.hidden, self.act)
        cross = attention(memory_width=self.memory) if layer % self.every == 0 else None
        norm = partial(nn.LayerNorm, self.width, self.eps)
        return TwoBlock(attention(), feed(), feed() if self.text else None, norm, cross, self.dropout)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QFormer":
        read = Reader(config)
        return cls(
            vocab=read("vocab_size", 30_522),
            width=read("hidden_size"),
            layers=read("num_hidden_layers"),
            heads=read("num_attention_heads"),
            hidden=read("intermediate_size"),
            positions=read("max_position_embeddings", 512),
            queries=read("num_query_tokens", 0),
            memory=read("encoder_hidden_size", 1408),
            every=read("cross_attention_frequency", 2),
            text=bool(read("use_qformer_text_input", False)),
            eps=read("layer_norm_eps", 1e-12),
            act=read.activation("hidden_act", "gelu"),
            dropout=read("hidden_dropout_prob", 0.1),
            attention_dropout=read("attention_probs_dropout_prob", 0.1),
        )

    def fit(self, stored: set[str]) -> "QFormer":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return replace(
            self,
            queries=self.queries if "query_tokens" in stored else 0,
            vocab=self.vocab if "embeddings.word_embeddings.weight" in stored else 0,
        )

    def saved(self) -> "QFormer":
        return self

    def to_config(self) -> dict[str, Any]:
        return {
            "architectures": ["Blip2QFormerModel"], "model_type": "blip_2_qformer", "vocab_size": self.vocab, "hidden_size": self.width,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "intermediate_size": self.hidden,
            "max_position_embeddings": self.positions, "num_query_tokens": self.queries, "encoder_hidden_size": self.memory,
            "cross_attention_frequency": self.every, "use_qformer_text_input": self.text, "layer_norm_eps": self.eps,
            "hidden_act": STORED.get(self.act, self.act), "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.attention_dropout, "initializer_range": 0.02, "pad_token_id": 0,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        """A bare Q-Former's names; its queries and tokens have those of the models it is part of."""
        table = linear("embed.norm", "layernorm", True)
        if self.queries:
            table["embed.query"] = Name("query_tokens")
        if self.vocab:
            table["embed.token.weight"] = Name("embeddings.word_embeddings.weight")
            table["embed.position.weight"] = Name("embeddings.position_embeddings.weight")
        for i in range(self.layers):
            roles = ROLES | (CROSS if i % self.every == 0 else {}) | (TEXT if self.text else {})
            for ours, theirs in roles.items():
                table |= linear(f"blocks.{i}.{ours}", f"encoder.layer.{i}.{theirs}", True)
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor."""
        return None if name.endswith("position_ids") else name.removeprefix("qformer.")
