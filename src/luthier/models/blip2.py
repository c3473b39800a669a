"""BLIP-2's first stage: a frozen ViT and a Q-Former that learns which texts belong to which pictures. Li et al. 2023, arXiv:2301.12597, 3.1.

Contrast: each picture's queries against each text's first state, neither seeing the other. Matching: both read together, each query votes.

B pictures or texts, Q queries, T tokens, D width of the space where both are compared
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from luthier.core.contrast import most_alike
from luthier.core.names import Name, linear
from luthier.core.transformer import Net
from luthier.lookup import lookup
from luthier.models._config import Reader
from luthier.models._picture import OUTSIDE, QUERYING, VISION, part, prefixed, read_part


class Retrieval(Net):
    causal, pool, vocab = False, "first", 0

    def __init__(self, config: "BLIP2"):
        super().__init__()
        vision, q_former = part("vit", config.vision), part("q_former", config.q_former)
        self.config, self.width = config, q_former.width
        self.vision, self.q_former = vision.build(), q_former.build()
        self.image_out, self.text_out = nn.Linear(self.width, config.shared), nn.Linear(self.width, config.shared)
        self.match = nn.Linear(self.width, 2)
        self.heads = nn.ModuleDict()

    @property
    def embed(self) -> nn.Module:
        return self.q_former.embed

    def hidden(self, ids: Tensor, mask: Tensor | None = None, **inputs: Any) -> Tensor:  # type: ignore[override]
        """(B, Q, width): the queries' states for pictures (B, C, Y, X)."""
        return self.q_former.hidden(memory=self.vision.hidden(ids))

    def images(self, pixels: Tensor) -> Tensor:
        """(B, Q, D), each of length 1."""
        return F.normalize(self.image_out(self.hidden(pixels)), dim=-1)

    def texts(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, D), each of length 1; ids (B, T) begin with [CLS]."""
        return F.normalize(self.text_out(self.q_former.hidden(ids, mask)[:, 0]), dim=-1)

    def scores(self, pixels: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(pictures, texts) cosines."""
        return most_alike(self.images(pixels), self.texts(ids, mask))

    def matching(self, pixels: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, 2) scores that picture and text of a row do not belong together, and that they do."""
        states = self.q_former.hidden(ids, mask, memory=self.vision.hidden(pixels))
        return self.match(states[:, : states.shape[1] - ids.shape[1]]).mean(1)

    def add_head(self, kind: str, labels: int) -> None:
        raise ValueError("a model that compares pictures and texts has no other heads")


@dataclass(frozen=True)
class BLIP2:
    vision: Mapping[str, Any] = field(default_factory=dict)  # settings of vit
    q_former: Mapping[str, Any] = field(default_factory=dict)  # settings of q_former, with texts
    shared: int = 256  # width of the space where pictures and texts are compared

    types: ClassVar[tuple[str, ...]] = ("blip-2",)
    verified: ClassVar[str] = "transformers 5.23 Blip2ForImageTextRetrieval, both scores, fp64, both directions"

    @property
    def layers(self) -> int:
        return part("vit", self.vision).layers

    def build(self) -> Retrieval:
        vision, q_former = part("vit", self.vision), part("q_former", self.q_former)
        if q_former.memory != vision.width or not (q_former.text and q_former.vocab and q_former.queries):
            raise ValueError(
                f"a Q-Former with text, vocab, queries and memory={vision.width} (the ViT's width) is needed, not memory={q_former.memory}"
            )
        return Retrieval(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """A model that writes about pictures is minigpt4's."""
        read = Reader(config)
        if (read("architectures", None) or ["Blip2ForImageTextRetrieval"])[0] != "Blip2ForImageTextRetrieval":
            return lookup("models", "minigpt4").from_config(config)
        vision = {**read("vision_config"), "model_type": "blip_2_vision_model"}
        q_former = read_part("q_former", read("qformer_config"), num_query_tokens=read("num_query_tokens", 32))
        return cls(read_part("vit", vision), q_former, read("image_text_hidden_size", 256))

    def fit(self, stored: set[str]) -> "BLIP2":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return self

    def saved(self) -> "BLIP2":
        return self

    def to_config(self) -> dict[str, Any]:
        q_former = part("q_former", self.q_former)
        return {
            "architectures": ["Blip2ForImageTextRetrieval"], "model_type": "blip-2", "vision_config": part("vit", self.vision).to_config(),
            "qformer_config": q_former.to_config(), "num_query_tokens": q_former.queries, "image_text_hidden_size": self.shared,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = prefixed(part("vit", self.vision).names({}), "vision.", VISION)
        table |= prefixed(part("q_former", self.q_former).names({}), "q_former.", QUERYING, OUTSIDE)
        for ours, theirs in {"image_out": "vision_projection", "text_out": "text_projection", "match": "itm_head"}.items():
            table |= linear(ours, theirs, True)
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor."""
        return None if name.endswith("position_ids") else name
