"""BERT: bidirectional, post-norm, learned positions, segments. Devlin et al. 2018, arXiv:1810.04805, section 3."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from torch import nn

from luthier.core.attention import Attention
from luthier.core.block import PostNorm
from luthier.core.feedforward import ACTIVATIONS, FeedForward
from luthier.core.heads import LanguageHead, Pooler
from luthier.core.names import Name, linear
from luthier.core.transformer import Embedding, Transformer, initialise
from luthier.models._config import STORED, Reader, check_heads

CLASSES = {"lm": "BertForMaskedLM", "classify": "BertForSequenceClassification", "tag": "BertForTokenClassification"}


@dataclass(frozen=True)
class BERT:
    vocab: int = 30_522
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 512
    segments: int = 2
    eps: float = 1e-12
    act: str = "gelu"
    dropout: float = 0.1  # on embeddings and sublayer outputs
    attention_dropout: float = 0.1
    lm: bool = True  # the masked-token head
    pooler: bool = True

    types: ClassVar[tuple[str, ...]] = ("bert",)
    verified: ClassVar[str] = "transformers 5.23 BertModel and its heads, fp64, T=200, both directions"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "bert-base-uncased": {},
        "bert-large-uncased": {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "bert-base-cased": {"vocab": 28_996},
        "bert-base-chinese": {"vocab": 21_128},
        "minilm-l6": {"width": 384, "layers": 6, "hidden": 1536, "lm": False},
    }

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    def build(self) -> Transformer:
        norm = partial(nn.LayerNorm, self.width, self.eps)
        blocks = [
            PostNorm(self._attention(), FeedForward(self.width, self.hidden, self.act), norm, dropout=self.dropout)
            for _ in range(self.layers)
        ]
        embed = Embedding(
            nn.Embedding(self.vocab, self.width), nn.Embedding(self.positions, self.width), nn.Embedding(self.segments, self.width), norm(),
            dropout=self.dropout,
        )  # fmt: skip
        net = Transformer(
            self, embed, blocks, None, self._language_head(embed) if self.lm else None, causal=False, width=self.width,
            pooler=Pooler(self.width) if self.pooler else None, label_dropout=self.dropout,
        )  # fmt: skip
        return initialise(net)

    def _attention(self) -> Attention:
        return Attention(self.width, self.heads, dropout=self.attention_dropout)

    def _language_head(self, embed: Embedding) -> LanguageHead:
        out = nn.Linear(self.width, self.vocab)  # the weight is the embedding's, the bias its own
        out.weight = embed.token.weight
        return LanguageHead(out, nn.Sequential(nn.Linear(self.width, self.width), Activation(self.act), nn.LayerNorm(self.width, self.eps)))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BERT":
        read = Reader(config)
        if read("position_embedding_type", "absolute") != "absolute" or read("is_decoder", False):
            raise ValueError("config.json asks for relative positions or a decoder, which bert here does not have")
        return cls(
            vocab=read("vocab_size"),
            width=read("hidden_size"),
            layers=read("num_hidden_layers"),
            heads=read("num_attention_heads"),
            hidden=read("intermediate_size"),
            positions=read("max_position_embeddings", 512),
            segments=read("type_vocab_size", 2),
            eps=read("layer_norm_eps", 1e-12),
            act=read.activation("hidden_act", "gelu"),
            dropout=read("hidden_dropout_prob", 0.1),
            attention_dropout=read("attention_probs_dropout_prob", 0.1),
        )

    def fit(self, stored: set[str]) -> "BERT":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return replace(self, lm="cls.predictions.bias" in stored, pooler="bert.pooler.dense.weight" in stored)

    def saved(self) -> "BERT":
        return self

    def to_config(self) -> dict[str, Any]:
        return {
            "architectures": [CLASSES["lm"] if self.lm else "BertModel"], "model_type": "bert", "vocab_size": self.vocab,
            "hidden_size": self.width, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "intermediate_size": self.hidden, "max_position_embeddings": self.positions, "type_vocab_size": self.segments,
            "layer_norm_eps": self.eps, "hidden_act": STORED.get(self.act, self.act), "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.attention_dropout, "initializer_range": 0.02, "pad_token_id": 0,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        top = "bert.embeddings."
        table = {
            "embed.token.weight": Name(f"{top}word_embeddings.weight"),
            "embed.position.weight": Name(f"{top}position_embeddings.weight"),
            "embed.types.weight": Name(f"{top}token_type_embeddings.weight"),
        }
        table |= linear("embed.norm", f"{top}LayerNorm", True)
        roles = {
            "attn.q": "attention.self.query", "attn.k": "attention.self.key", "attn.v": "attention.self.value",
            "attn.o": "attention.output.dense", "attn_norm": "attention.output.LayerNorm", "ffn.up": "intermediate.dense",
            "ffn.down": "output.dense", "ffn_norm": "output.LayerNorm",
        }  # fmt: skip
        for i in range(self.layers):
            for ours, theirs in roles.items():
                table |= linear(f"blocks.{i}.{ours}", f"bert.encoder.layer.{i}.{theirs}", True)
        if "lm" in heads:
            table |= linear("heads.lm.transform.0", "cls.predictions.transform.dense", True)
            table |= linear("heads.lm.transform.2", "cls.predictions.transform.LayerNorm", True)
            table["heads.lm.out.bias"] = Name("cls.predictions.bias")
        if self.pooler or heads.keys() & {"classify", "regress", "choose"}:
            table |= linear("pooler.dense", "bert.pooler.dense", True)
        for kind in heads.keys() & {"classify", "regress", "choose", "tag", "spans"}:
            table |= linear(f"heads.{kind}.out", "qa_outputs" if kind == "spans" else "classifier", True)
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for what is not ours: buffers, the tied decoder, next-sentence's head."""
        if name.endswith("position_ids") or name.startswith(("cls.predictions.decoder.", "cls.seq_relationship.")):
            return None
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        return name if name.startswith(("bert.", "cls.", "classifier.", "qa_outputs.")) else f"bert.{name}"


class Activation(nn.Module):
    """An activation as a module, by its name."""

    def __init__(self, act: str):
        super().__init__()
        self.act = ACTIVATIONS[act]

    def forward(self, x):
        return self.act(x)
