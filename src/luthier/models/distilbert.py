"""DistilBERT: half of BERT's layers, without segments and pooler. Sanh et al. 2019, arXiv:1910.01108, section 3."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from luthier.core.heads import Pooler
from luthier.core.names import Name, linear
from luthier.core.transformer import Transformer
from luthier.models import _bert
from luthier.models._config import STORED, Reader, check_heads

ROLES = {
    "attn.q": "attention.q_lin", "attn.k": "attention.k_lin", "attn.v": "attention.v_lin", "attn.o": "attention.out_lin",
    "attn_norm": "sa_layer_norm", "ffn.up": "ffn.lin1", "ffn.down": "ffn.lin2", "ffn_norm": "output_layer_norm",
}  # fmt: skip
OWN = ("classify", "regress", "choose")  # read a sentence through a layer of their own, with relu


@dataclass(frozen=True)
class DistilBERT:
    vocab: int = 30_522
    width: int = 768
    layers: int = 6
    heads: int = 12
    hidden: int = 3072
    positions: int = 512
    eps: float = 1e-12
    act: str = "gelu"
    dropout: float = 0.1  # on embeddings, the feed-forward's output and before the labels of tokens
    attention_dropout: float = 0.1
    label_dropout: float = 0.2  # before the labels of a sentence
    span_dropout: float = 0.1  # before the ends of a span
    lm: bool = True  # the masked-token head
    next_sentence: bool = False  # the head that says whether the second text follows the first: 0 yes, 1 no
    sentence_order: bool = False  # the head that says whether two texts are in order: 0 yes, 1 no
    pooler: bool = False

    segments: ClassVar[int] = 0
    types: ClassVar[tuple[str, ...]] = ("distilbert",)
    verified: ClassVar[str] = "transformers 5.23 DistilBertForMaskedLM and its heads, fp64, T=200, both directions"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "distilbert-base-uncased": {},
        "distilbert-base-cased": {"vocab": 28_996},
        "distilbert-base-multilingual-cased": {"vocab": 119_547},
    }

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    def build(self) -> Transformer:
        poolers = dict.fromkeys(OWN, partial(Pooler, self.width, "relu"))
        blocks = _bert.post_norm_blocks(self, attn_dropout=0.0)  # DistilBERT has none there
        rates = {"tag": self.dropout, "spans": self.span_dropout}
        return _bert.encoder(self, _bert.embedding(self), blocks, poolers=poolers, dropouts=rates)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "DistilBERT":
        read = Reader(config)
        _bert.refuse(read)
        return cls(
            vocab=read("vocab_size"),
            width=read("dim"),
            layers=read("n_layers"),
            heads=read("n_heads"),
            hidden=read("hidden_dim"),
            positions=read("max_position_embeddings", 512),
            act=read.activation("activation", "gelu"),
            dropout=read("dropout", 0.1),
            attention_dropout=read("attention_dropout", 0.1),
            label_dropout=read("seq_classif_dropout", 0.2),
            span_dropout=read("qa_dropout", 0.1),
        )

    def fit(self, stored: set[str]) -> "DistilBERT":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return _bert.fit(self, stored, "vocab_projector.bias", "distilbert.pooler.dense.weight")

    def saved(self) -> "DistilBERT":
        if self.eps != 1e-12:
            raise ValueError(f"a stored DistilBERT has norms of eps 1e-12, which config.json cannot change, and this one {self.eps}")
        return self

    def to_config(self) -> dict[str, Any]:
        return {
            "architectures": [_bert.class_name(self, "DistilBert")], "model_type": "distilbert", "vocab_size": self.vocab,
            "dim": self.width, "n_layers": self.layers, "n_heads": self.heads, "hidden_dim": self.hidden,
            "max_position_embeddings": self.positions, "activation": STORED.get(self.act, self.act), "dropout": self.dropout,
            "attention_dropout": self.attention_dropout, "seq_classif_dropout": self.label_dropout, "qa_dropout": self.span_dropout,
            "sinusoidal_pos_embds": False, "initializer_range": 0.02, "pad_token_id": 0,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = _bert.embedding_names(self, "distilbert.embeddings")
        for i in range(self.layers):
            table |= _bert.block_names(i, ROLES, f"distilbert.transformer.layer.{i}")
        if self.pooler or heads.keys() & _bert.PAIRS.keys():
            table |= linear("pooler.dense", "distilbert.pooler.dense", True)
        for kind in heads.keys() & set(OWN):
            table |= linear(f"heads.{kind}.pooler.dense", "pre_classifier", True)
        return table | _bert.head_names(heads, "vocab_transform", "vocab_layer_norm", "vocab_projector.bias")

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for what is not ours: buffers, the tied output matrix."""
        heads = ("vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "pre_classifier.")
        return _bert.alias(name, "distilbert", heads, ("vocab_projector.weight",))
