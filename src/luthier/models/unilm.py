"""UniLM: one BERT for understanding and for writing, by four kinds of masks. Dong et al. 2019, arXiv:1905.03197, sections 2.2 and 2.3.

core/visibility.py makes the masks: net.hidden(..., allow=visible(kinds, real, sources)). Each kind of mask has segments of its own.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from luthier.core.names import Name
from luthier.core.transformer import Transformer
from luthier.models import _bert
from luthier.models._config import Reader, check_heads


@dataclass(frozen=True)
class UniLM:
    vocab: int = 28_996
    width: int = 1024
    layers: int = 24
    heads: int = 16
    hidden: int = 4096
    positions: int = 512
    segments: int = 6
    eps: float = 1e-12
    act: str = "gelu"
    dropout: float = 0.1  # on embeddings and sublayer outputs
    attention_dropout: float = 0.1
    label_dropout: float = 0.1  # before the labels of a sentence or token
    lm: bool = True  # the masked-token head
    next_sentence: bool = False  # the head that says whether the second text follows the first: 0 yes, 1 no
    sentence_order: bool = False  # the head that says whether two texts are in order: 0 yes, 1 no
    pooler: bool = True

    types: ClassVar[tuple[str, ...]] = ("unilm",)
    verified: ClassVar[str] = "transformers 5.23 BertForMaskedLM with the same masks, fp64, T=200, both directions; masks by hand"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "unilm-base-cased": {"width": 768, "layers": 12, "heads": 12, "hidden": 3072},
        "unilm-large-cased": {},
    }
    # Segment ids of the first and the second text under each mask; a single text has the first.
    kinds: ClassVar[dict[str, tuple[int, int]]] = {
        "bidirectional": (0, 1), "left_to_right": (2, 2), "right_to_left": (3, 3), "sequence_to_sequence": (4, 5),
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    def build(self) -> Transformer:
        return _bert.encoder(self, _bert.embedding(self), _bert.post_norm_blocks(self))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "UniLM":
        read = Reader(config)
        if read("rel_pos_bins", 0):
            raise ValueError(
                f"config.json asks for rel_pos_bins={read('rel_pos_bins')} (relative positions of UniLM v2), which unilm here lacks"
            )
        return cls(**_bert.sizes(read))

    def fit(self, stored: set[str]) -> "UniLM":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return _bert.fit(self, stored)

    def saved(self) -> "UniLM":
        return self

    def to_config(self) -> dict[str, Any]:
        """A BERT's, with more segments than usual: transformers' BERT is the same net when it is given the masks."""
        return _bert.settings(self, "bert", "Bert", "next_sentence") | {"luthier": "unilm"}

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        return _bert.names(self, heads)

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for what is not ours: buffers, the tied decoder."""
        return _bert.alias(name, "bert")
