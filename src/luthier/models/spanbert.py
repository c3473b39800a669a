"""SpanBERT: BERT that learns spans, without next sentences. Joshi et al. 2020, arXiv:1907.10529, sections 3.2 and 4.

The span boundary objective finds the tokens of a masked span from the states just outside it alone.
N masked tokens, D width, P width of a place's vector, V vocabulary
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.heads import transform
from luthier.core.names import Name, linear
from luthier.core.transformer import Embedding, Transformer
from luthier.models import _bert
from luthier.models._config import Reader, check_heads

HEAD = "cls.pair_target_predictions"


@dataclass(frozen=True)
class SpanBERT:
    vocab: int = 28_996
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
    places: int = 15  # tokens of a span that the boundary head can tell apart
    place_width: int = 200
    lm: bool = True  # the masked-token head
    next_sentence: bool = False  # the head that says whether the second text follows the first: 0 yes, 1 no
    sentence_order: bool = False  # the head that says whether two texts are in order: 0 yes, 1 no
    span_boundary: bool = True  # the span boundary head
    pooler: bool = False

    types: ClassVar[tuple[str, ...]] = ("spanbert",)
    verified: ClassVar[str] = "encoder: transformers 5.23 BertForMaskedLM, fp64, T=200; span boundary head: the paper's formula in numpy"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "spanbert-base-cased": {},
        "spanbert-large-cased": {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
    }

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    def build(self) -> Transformer:
        embed = _bert.embedding(self)
        others = {"span_boundary": SpanBoundaryHead(self, embed)} if self.span_boundary else None
        return _bert.encoder(self, embed, _bert.post_norm_blocks(self), others=others)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "SpanBERT":
        read = Reader(config)
        return cls(**_bert.sizes(read), places=read("span_places", 15), place_width=read("span_place_width", 200))

    def fit(self, stored: set[str]) -> "SpanBERT":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return _bert.fit(self, stored, span_boundary=f"{HEAD}.bias")

    def saved(self) -> "SpanBERT":
        return self

    def to_config(self) -> dict[str, Any]:
        """A BERT's, which is what transformers makes of it (without the boundary head)."""
        own = {"luthier": "spanbert", "span_places": self.places, "span_place_width": self.place_width}
        return _bert.settings(self, "bert", "Bert") | own

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = _bert.names(self, heads)
        if "span_boundary" in heads:
            table |= {"heads.span_boundary.place.weight": Name(f"{HEAD}.position_embeddings.weight")}
            table |= {"heads.span_boundary.out.bias": Name(f"{HEAD}.bias")}
            for i in (0, 1):
                ours, theirs = f"heads.span_boundary.layers.{i}", f"{HEAD}.mlp_layer_norm"
                table |= linear(f"{ours}.0", f"{theirs}.linear{i + 1}", True) | linear(f"{ours}.2", f"{theirs}.layer_norm{i + 1}", True)
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for what is not ours: buffers, the tied decoders."""
        return _bert.alias(name, "bert", (), (f"{HEAD}.decoder.",))


class SpanBoundaryHead(nn.Module):
    """Scores of the token at a place of a span: h = [x before, x behind, p place]; twice norm(act(dense h)); then the vocabulary."""

    def __init__(self, arch: SpanBERT, embed: Embedding):
        super().__init__()
        self.place = nn.Embedding(arch.places, arch.place_width)
        inner = 2 * arch.width + arch.place_width
        self.layers = nn.Sequential(*(transform(size, arch.width, arch.act, arch.eps) for size in (inner, arch.width)))
        self.out = _bert.masked_head(embed, nn.Identity()).out

    def forward(self, before_ND: Tensor, behind_ND: Tensor, place_N: Tensor) -> Tensor:
        """(N, V). before, behind: last states of the tokens next to the span; place: 0 for the first token of the span."""
        return self.out(self.layers(torch.cat([before_ND, behind_ND, self.place(place_N)], -1)))
