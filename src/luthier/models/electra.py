"""ELECTRA: a BERT that tells replaced tokens from original ones. Clark et al. 2020, arXiv:2003.10555, section 2.

A small generator, a masked language model, fills masked places; the discriminator learns from every token.
N rows of any leading shape, D width
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from luthier.core.heads import Activation, Pooler
from luthier.core.names import Name, linear
from luthier.core.transformer import Transformer
from luthier.models import _bert
from luthier.models._config import Reader, check_heads

OWN = {
    "classify": "classifier.dense",
    "regress": "classifier.dense",
    "choose": "sequence_summary.summary",
}  # layers of their own, with gelu


@dataclass(frozen=True)
class ELECTRA:
    vocab: int = 30_522
    embed_width: int = 128
    width: int = 256
    layers: int = 12
    heads: int = 4
    hidden: int = 1024
    positions: int = 512
    segments: int = 2
    eps: float = 1e-12
    act: str = "gelu"
    dropout: float = 0.1  # on embeddings and sublayer outputs
    attention_dropout: float = 0.1
    label_dropout: float = 0.1  # before the labels of a sentence or token
    choose_dropout: float = 0.1  # before the score of a choice
    lm: bool = False  # the generator's masked-token head
    replaced: bool = True  # the discriminator's head
    next_sentence: bool = False  # the head that says whether the second text follows the first: 0 yes, 1 no
    sentence_order: bool = False  # the head that says whether two texts are in order: 0 yes, 1 no
    pooler: bool = False

    types: ClassVar[tuple[str, ...]] = ("electra",)
    verified: ClassVar[str] = (
        "transformers 5.23 ElectraForPreTraining, ElectraForMaskedLM and the other heads, fp64, T=200, both directions"
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "electra-small-discriminator": {},
        "electra-base-discriminator": {"embed_width": 768, "width": 768, "heads": 12, "hidden": 3072},
        "electra-large-discriminator": {"embed_width": 1024, "width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "electra-small-generator": {"lm": True, "replaced": False},
        "electra-base-generator": {"embed_width": 768, "lm": True, "replaced": False},
        "electra-large-generator": {"embed_width": 1024, "layers": 24, "lm": True, "replaced": False},
    }

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    def build(self) -> Transformer:
        project = nn.Linear(self.embed_width, self.width) if self.embed_width != self.width else None
        own = partial(Pooler, self.width, "gelu", self.label_dropout)
        return _bert.encoder(
            self, _bert.embedding(self, self.embed_width, project=project), _bert.post_norm_blocks(self), act="gelu",
            others={"replaced": ReplacedHead(self.width, self.act)} if self.replaced else None,
            poolers={"classify": own, "regress": own, "choose": partial(Pooler, self.width, "gelu")}, dropouts={"choose": self.choose_dropout},
        )  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ELECTRA":
        read = Reader(config)
        summary = (read("summary_type", "first"), read("summary_use_proj", True), read("summary_activation", "gelu"))
        if summary != ("first", True, "gelu"):
            raise ValueError(f"config.json asks for a summary of {summary}, and electra here has first, a projection and gelu")
        generator = any(str(name).endswith("ForMaskedLM") for name in read("architectures", None) or [])
        return cls(
            **_bert.sizes(read), embed_width=read("embedding_size", 128), choose_dropout=read("summary_last_dropout", 0.1),
            lm=generator, replaced=not generator,
        )  # fmt: skip

    def fit(self, stored: set[str]) -> "ELECTRA":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        replaced = "discriminator_predictions.dense.weight"
        return _bert.fit(self, stored, "generator_lm_head.bias", "electra.pooler.dense.weight", replaced=replaced)

    def saved(self) -> "ELECTRA":
        return self

    def to_config(self) -> dict[str, Any]:
        written = _bert.settings(self, "electra", "Electra") | {"embedding_size": self.embed_width}
        written |= {
            "summary_type": "first",
            "summary_use_proj": True,
            "summary_activation": "gelu",
            "summary_last_dropout": self.choose_dropout,
        }
        return written | ({"architectures": ["ElectraForPreTraining"]} if self.replaced and not self.lm else {})

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = _bert.names(self, {kind: n for kind, n in heads.items() if kind not in ("lm", *OWN)}, "electra")
        if self.embed_width != self.width:
            table |= linear("embed.project", "electra.embeddings_project", True)
        if "lm" in heads:
            dense, last = "generator_predictions.dense", "generator_predictions.LayerNorm"
            table |= _bert.head_names({"lm": 0}, dense, last, "generator_lm_head.bias")
        if "replaced" in heads:
            table |= linear("heads.replaced.dense", "discriminator_predictions.dense", True)
            table |= linear("heads.replaced.out", "discriminator_predictions.dense_prediction", True)
        for kind in heads.keys() & OWN.keys():
            table |= linear(f"heads.{kind}.pooler.dense", OWN[kind], True)
            table |= linear(f"heads.{kind}.out", "classifier" if kind == "choose" else "classifier.out_proj", True)
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for what is not ours: buffers, the tied output matrix."""
        heads = ("generator_predictions.", "generator_lm_head.", "discriminator_predictions.", "sequence_summary.")
        return _bert.alias(name, "electra", heads, ("generator_lm_head.weight",))


class ReplacedHead(nn.Module):
    """out(act(dense h)): the log-odds that a token is not the original one, (N, 1) of (N, D)."""

    def __init__(self, width: int, act: str):
        super().__init__()
        self.dense, self.act, self.out = nn.Linear(width, width), Activation(act), nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(self.act(self.dense(hidden)))
