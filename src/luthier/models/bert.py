"""BERT: bidirectional, post-norm, learned positions, segments. Devlin et al. 2018, arXiv:1810.04805, section 3.

The Chinese models of Cui et al. 2019 (arXiv:1906.08101: whole words masked, also those called RoBERTa) are BERT in every part: BERT-WWM is
objective masked with words (pieces, or jieba for Chinese).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.names import Name
from luthier.core.transformer import Transformer
from luthier.models import _bert
from luthier.models._config import Reader, check_heads


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
    label_dropout: float = 0.1  # before the labels of a sentence or token
    lm: bool = True  # the masked-token head
    next_sentence: bool = False  # the head that says whether the second text follows the first: 0 yes, 1 no
    sentence_order: bool = False  # the head that says whether two texts are in order: 0 yes, 1 no
    pooler: bool = True

    types: ClassVar[tuple[str, ...]] = ("bert",)
    verified: ClassVar[str] = "transformers 5.23 BertForPreTraining and the other heads, fp64, T=200, both directions"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "bert-base-uncased": {},
        "bert-large-uncased": {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "bert-base-cased": {"vocab": 28_996},
        "bert-large-cased": {"vocab": 28_996, "width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "bert-base-multilingual-cased": {"vocab": 119_547},
        "bert-base-chinese": {"vocab": 21_128},
        "bert-large-uncased-whole-word-masking": {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "bert-large-cased-whole-word-masking": {"vocab": 28_996, "width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "chinese-bert-wwm": {"vocab": 21_128},
        "chinese-bert-wwm-ext": {"vocab": 21_128},
        "chinese-roberta-wwm-ext": {"vocab": 21_128},
        "chinese-roberta-wwm-ext-large": {"vocab": 21_128, "width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "bert-tiny": {"width": 128, "layers": 2, "heads": 2, "hidden": 512},
        "bert-mini": {"width": 256, "layers": 4, "heads": 4, "hidden": 1024},
        "bert-small": {"width": 512, "layers": 4, "heads": 8, "hidden": 2048},
        "bert-medium": {"width": 512, "layers": 8, "heads": 8, "hidden": 2048},
        "minilm-l6": {"width": 384, "layers": 6, "hidden": 1536, "lm": False},
    }

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    def build(self) -> Transformer:
        return _bert.encoder(self, _bert.embedding(self), _bert.post_norm_blocks(self))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BERT":
        return cls(**_bert.sizes(Reader(config)))

    def fit(self, stored: set[str]) -> "BERT":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return _bert.fit(self, stored)

    def saved(self) -> "BERT":
        return self

    def to_config(self) -> dict[str, Any]:
        return _bert.settings(self, "bert", "Bert", "next_sentence")

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        return _bert.names(self, heads)

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for what is not ours: buffers, the tied decoder."""
        return _bert.alias(name, "bert")
