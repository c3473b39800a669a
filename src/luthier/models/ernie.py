"""ERNIE of Baidu: BERT that learns entities and phrases. Sun et al. 2019, arXiv:1904.09223; 2.0 arXiv:1907.12412; 3.0 arXiv:2107.02137.

From 2.0 on, a vector says which task of pre-training a text is from: net.hidden(..., tasks=(B, T)); fine-tuning leaves it at 0.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from luthier.core.names import Name
from luthier.core.transformer import Transformer
from luthier.models import _bert
from luthier.models._config import Reader, check_heads


@dataclass(frozen=True)
class ERNIE:
    vocab: int = 18_000
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 513
    segments: int = 2
    tasks: int = 0  # vectors for the task a text is from; 0: none
    eps: float = 1e-5
    act: str = "relu"
    dropout: float = 0.1  # on embeddings and sublayer outputs
    attention_dropout: float = 0.1
    label_dropout: float = 0.1  # before the labels of a sentence or token
    lm: bool = True  # the masked-token head
    next_sentence: bool = False  # the head that says whether two texts belong together; ERNIE's own data has 1 for yes
    sentence_order: bool = False  # the head that says whether two texts are in order: 0 yes, 1 no
    pooler: bool = True

    types: ClassVar[tuple[str, ...]] = ("ernie",)
    verified: ClassVar[str] = "transformers 5.23 ErnieForPreTraining and the other heads, fp64, T=200, both directions"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "ernie-1.0-base-zh": {},
        "ernie-2.0-base-zh": {"segments": 4},
        "ernie-2.0-base-en": {"vocab": 30_522, "positions": 512, "segments": 4, "act": "gelu"},
        "ernie-2.0-large-en": {
            "vocab": 30_522, "width": 1024, "layers": 24, "heads": 16, "hidden": 4096, "positions": 512, "segments": 4, "act": "gelu",
        },
        "ernie-3.0-xbase-zh": {
            "vocab": 40_000, "width": 1024, "layers": 20, "heads": 16, "hidden": 4096, "positions": 2048, "segments": 4, "tasks": 16,
            "act": "gelu",
        },
        "ernie-3.0-base-zh": {"vocab": 40_000, "positions": 2048, "segments": 4, "tasks": 3, "act": "gelu"},
        "ernie-3.0-medium-zh": {"vocab": 40_000, "layers": 6, "positions": 2048, "segments": 4, "tasks": 16, "act": "gelu"},
        "ernie-3.0-mini-zh": {
            "vocab": 40_000, "width": 384, "layers": 6, "hidden": 1536, "positions": 2048, "segments": 4, "tasks": 16, "act": "gelu",
        },
        "ernie-3.0-micro-zh": {
            "vocab": 40_000, "width": 384, "layers": 4, "hidden": 1536, "positions": 2048, "segments": 4, "tasks": 16, "act": "gelu",
        },
        "ernie-3.0-nano-zh": {
            "vocab": 40_000, "width": 312, "layers": 4, "hidden": 1248, "positions": 2048, "segments": 4, "tasks": 16, "act": "gelu",
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    def build(self) -> Transformer:
        tasks = nn.Embedding(self.tasks, self.width) if self.tasks else None
        return _bert.encoder(self, _bert.embedding(self, tasks=tasks), _bert.post_norm_blocks(self))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ERNIE":
        read = Reader(config)
        return cls(**_bert.sizes(read), tasks=read("task_type_vocab_size", 3) if read("use_task_id", False) else 0)

    def fit(self, stored: set[str]) -> "ERNIE":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return _bert.fit(self, stored, pooler="ernie.pooler.dense.weight")

    def saved(self) -> "ERNIE":
        return self

    def to_config(self) -> dict[str, Any]:
        tasks = {"use_task_id": self.tasks > 0, "task_type_vocab_size": self.tasks or 3}
        return _bert.settings(self, "ernie", "Ernie", "next_sentence") | tasks

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = _bert.names(self, heads, "ernie")
        if self.tasks:
            table["embed.tasks.weight"] = Name("ernie.embeddings.task_type_embeddings.weight")
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for what is not ours: buffers, the tied decoder."""
        return _bert.alias(name, "ernie")
