"""ALBERT: a narrow embedding, and one block for all layers. Lan et al. 2020, arXiv:1909.11942, section 3.1.

share: what the layers have in common (table 4 of the paper): all of a block, its attention alone, or its feed-forward alone.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from luthier.core.block import Block
from luthier.core.names import Name, linear
from luthier.core.transformer import Transformer
from luthier.models import _bert
from luthier.models._config import STORED, Reader, check_heads

ROLES = {
    "attn.q": "attention.query", "attn.k": "attention.key", "attn.v": "attention.value", "attn.o": "attention.dense",
    "attn_norm": "attention.LayerNorm", "ffn.up": "ffn", "ffn.down": "ffn_output", "ffn_norm": "full_layer_layer_norm",
}  # fmt: skip


@dataclass(frozen=True)
class ALBERT:
    vocab: int = 30_000
    embed_width: int = 128
    width: int = 768
    layers: int = 12
    groups: int = 1  # of layers that share their blocks: as many as layers, and none are shared
    inner: int = 1  # blocks that follow each other in every layer
    heads: int = 12
    hidden: int = 3072
    positions: int = 512
    segments: int = 2
    share: Literal["all", "attention", "ffn"] = "all"
    eps: float = 1e-12
    act: str = "gelu_tanh"
    dropout: float = 0.0  # on embeddings and sublayer outputs
    attention_dropout: float = 0.0
    label_dropout: float = 0.1  # before the labels of a sentence or token
    lm: bool = True  # the masked-token head
    next_sentence: bool = False  # the head that says whether the second text follows the first: 0 yes, 1 no
    sentence_order: bool = False  # the head that says whether two texts are in order: 0 yes, 1 no
    pooler: bool = True

    types: ClassVar[tuple[str, ...]] = ("albert",)
    verified: ClassVar[str] = "transformers 5.23 AlbertForPreTraining and the other heads, fp64, T=200, both directions"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "albert-base-v1": {"dropout": 0.1, "attention_dropout": 0.1},
        "albert-large-v1": {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096, "dropout": 0.1, "attention_dropout": 0.1},
        "albert-xlarge-v1": {"width": 2048, "layers": 24, "heads": 16, "hidden": 8192, "dropout": 0.1, "attention_dropout": 0.1},
        "albert-xxlarge-v1": {"width": 4096, "heads": 64, "hidden": 16_384},
        "albert-base-v2": {},
        "albert-large-v2": {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "albert-xlarge-v2": {"width": 2048, "layers": 24, "heads": 16, "hidden": 8192},
        "albert-xxlarge-v2": {"width": 4096, "heads": 64, "hidden": 16_384},
    }

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        if self.share not in ("all", "attention", "ffn"):
            raise ValueError(f"share={self.share!r}; layers share all, attention or ffn (none: groups={self.layers})")
        if self.layers < self.groups or (self.share != "all" and (self.groups, self.inner) != (1, 1)):
            raise ValueError(f"groups={self.groups} and inner={self.inner} with layers={self.layers}, share={self.share} fit no model")

    def build(self) -> Transformer:
        embed = _bert.embedding(self, self.embed_width, project=nn.Linear(self.embed_width, self.width))
        blocks = self._blocks()
        order = self._order() if self.share == "all" else None
        return _bert.encoder(self, embed, blocks, order=order, dropouts={"sentence_order": self.label_dropout})

    def _blocks(self) -> list[Block]:
        if self.share == "all":
            return [_bert.post_norm_block(self) for _ in range(self.groups * self.inner)]
        blocks = [_bert.post_norm_block(self) for _ in range(self.layers)]
        for block in blocks[1:]:
            if self.share == "attention":
                block.attn, block.attn_norm = blocks[0].attn, blocks[0].attn_norm
            else:
                block.ffn, block.ffn_norm = blocks[0].ffn, blocks[0].ffn_norm
        return blocks

    def _order(self) -> tuple[int, ...]:
        group = [layer * self.groups // self.layers for layer in range(self.layers)]
        return tuple(g * self.inner + j for g in group for j in range(self.inner))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ALBERT":
        read = Reader(config)
        fields = _bert.sizes(read) | {
            "act": read.activation("hidden_act", "gelu_new"),
            "label_dropout": read("classifier_dropout_prob", 0.1),
        }
        share = read("share", "all")
        groups = {"groups": read("num_hidden_groups", 1), "inner": read("inner_group_num", 1)} if share == "all" else {}
        return cls(**fields, **groups, share=share, embed_width=read("embedding_size", 128))

    def fit(self, stored: set[str]) -> "ALBERT":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return _bert.fit(self, stored, "predictions.bias", "albert.pooler.weight")

    def saved(self) -> "ALBERT":
        return self

    def to_config(self) -> dict[str, Any]:
        """Where layers share a part of the block only, the file holds it for each of them, as for layers that share nothing."""
        written = _bert.settings(self, "albert", "Albert", "sentence_order")
        del written["classifier_dropout"]
        groups = self.groups if self.share == "all" else self.layers
        return written | {
            "embedding_size": self.embed_width, "num_hidden_groups": groups, "inner_group_num": self.inner, "share": self.share,
            "hidden_act": STORED.get(self.act, self.act), "classifier_dropout_prob": self.label_dropout,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = _bert.embedding_names(self, "albert.embeddings")
        table |= linear("embed.project", "albert.encoder.embedding_hidden_mapping_in", True)
        for i in range(self.groups * self.inner if self.share == "all" else self.layers):
            group, j = divmod(i, self.inner)
            table |= _bert.block_names(i, ROLES, f"albert.encoder.albert_layer_groups.{group}.albert_layers.{j}")
        if self.pooler or heads.keys() & _bert.SENTENCE:
            table |= linear("pooler.dense", "albert.pooler", True)
        return table | _bert.head_names(heads, "predictions.dense", "predictions.LayerNorm", "predictions.bias")

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for what is not ours: buffers, the tied decoder."""
        return _bert.alias(name, "albert", ("predictions.",), ("predictions.decoder.",))
