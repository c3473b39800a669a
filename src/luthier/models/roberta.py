"""RoBERTa: BERT without segments, positions counted from behind the padding token. Liu et al. 2019, arXiv:1907.11692, section 3.

Its head for sentences has two layers of its own. XLM-RoBERTa (arXiv:1911.02116) and CamemBERT (arXiv:1911.03894) are the same parts.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from luthier.core.heads import Pooler
from luthier.core.names import Name, linear
from luthier.core.transformer import Transformer
from luthier.models import _bert
from luthier.models._config import Reader, check_heads

CLASSES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
OWN = ("classify", "regress")  # multiple choice reads the model's pooler


@dataclass(frozen=True)
class RoBERTa:
    vocab: int = 50_265
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 512  # that a text can have; the stored table begins with pad + 1 more rows
    segments: int = 1
    pad: int = 1  # the padding token
    eps: float = 1e-5
    act: str = "gelu"
    dropout: float = 0.1  # on embeddings and sublayer outputs
    attention_dropout: float = 0.1
    label_dropout: float = 0.1  # before the labels of a sentence or token
    lm: bool = True  # the masked-token head
    next_sentence: bool = False  # the head that says whether the second text follows the first: 0 yes, 1 no
    sentence_order: bool = False  # the head that says whether two texts are in order: 0 yes, 1 no
    pooler: bool = False  # pre-training has no task for it
    kind: str = "roberta"  # config.json's model_type

    types: ClassVar[tuple[str, ...]] = ("roberta", "xlm-roberta", "camembert")
    verified: ClassVar[str] = "transformers 5.23 RobertaForMaskedLM and its heads, fp64, T=200, both directions"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "roberta-base": {},
        "roberta-large": {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "distilroberta-base": {"layers": 6},
        "xlm-roberta-base": {"vocab": 250_002, "kind": "xlm-roberta"},
        "xlm-roberta-large": {"vocab": 250_002, "width": 1024, "layers": 24, "heads": 16, "hidden": 4096, "kind": "xlm-roberta"},
    }

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    def build(self) -> Transformer:
        own = partial(Pooler, self.width, dropout=self.label_dropout)
        embed = _bert.embedding(self, rows=self.positions + self.pad + 1, pad=self.pad)
        rates = {"choose": self.dropout}
        return _bert.encoder(self, embed, _bert.post_norm_blocks(self), act="gelu", poolers=dict.fromkeys(OWN, own), dropouts=rates)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RoBERTa":
        read = Reader(config)
        fields, pad = _bert.sizes(read), read("pad_token_id", 1)
        if not isinstance(pad, int) or pad < 0:
            raise ValueError(
                f"config.json says pad_token_id={pad!r}, and positions are counted from behind it; put the padding token's id there"
            )
        return cls(**fields | {"positions": fields["positions"] - pad - 1}, pad=pad, kind=read("model_type", "roberta"))

    def fit(self, stored: set[str]) -> "RoBERTa":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return _bert.fit(self, stored, "lm_head.bias", "roberta.pooler.dense.weight")

    def saved(self) -> "RoBERTa":
        return self

    def to_config(self) -> dict[str, Any]:
        rows = {"max_position_embeddings": self.positions + self.pad + 1, "pad_token_id": self.pad}
        return _bert.settings(self, self.kind, CLASSES[self.kind]) | rows

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        others = {kind: labels for kind, labels in heads.items() if kind not in ("lm", *OWN)}
        table = _bert.names(self, others, "roberta")
        if "lm" in heads:
            table |= _bert.head_names({"lm": 0}, "lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
        for kind in heads.keys() & set(OWN):
            table |= linear(f"heads.{kind}.pooler.dense", "classifier.dense", True)
            table |= linear(f"heads.{kind}.out", "classifier.out_proj", True)
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for what is not ours: buffers, the tied decoder."""
        return _bert.alias(name, "roberta", ("lm_head.",), ("lm_head.decoder.",))
