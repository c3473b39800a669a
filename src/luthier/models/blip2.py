"""BLIP-2's first stage: a frozen ViT and a Q-Former that learns which texts belong to which pictures. Li et al. 2023, arXiv:2301.12597, 3.1.

Contrast: each picture's queries against each text's first state, neither seeing the other. Matching: both read together, each query votes.
Writing: the text is read from left to right and sees the queries, which do not see it.

B pictures or texts, S states of a picture, Q queries, T tokens, D width of the space where both are compared
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luthier.core.contrast import most_alike
from luthier.core.heads import transform
from luthier.core.names import Name, linear
from luthier.core.transformer import Net, Sight
from luthier.lookup import lookup
from luthier.models._bert import head_names, masked_head
from luthier.models._config import Reader
from luthier.models._picture import OUTSIDE, QUERYING, VISION, eyes, part, prefixed, read_part, sight

HOTTEST = math.log(100)  # CLIP's limit for the inverse of the temperature


class Retrieval(Net):
    causal, pool = False, "first"

    def __init__(self, config: "BLIP2"):
        super().__init__()
        vision, q_former = part("vit", config.vision), part("q_former", config.q_former)
        self.config, self.width = config, q_former.width
        self.vision, self.q_former = vision.build(), q_former.build()
        self.image_out, self.text_out = nn.Linear(self.width, config.shared), nn.Linear(self.width, config.shared)
        self.match = nn.Linear(self.width, 2)
        self.logit_scale = nn.Parameter(torch.tensor([1 / 0.07]).log()) if config.temperature else None
        self.heads = nn.ModuleDict()
        if config.lm:
            self.add_head("lm", 0)

    @property
    def embed(self) -> nn.Module:
        return self.q_former.embed

    @property
    def vocab(self) -> int:  # type: ignore[override]
        return self.q_former.vocab

    @property
    def sight(self) -> Sight:  # type: ignore[override]
        return sight(self.config.vision)

    @property
    def scale(self) -> Tensor | float:
        """The inverse of the temperature, learnt where the model has one. Radford et al. 2021 (CLIP), arXiv:2103.00020, section 2.5."""
        return 1 / 0.07 if self.logit_scale is None else self.logit_scale[0].clamp(max=HOTTEST).exp()

    def hidden(self, ids: Tensor, mask: Tensor | None = None, **inputs: Any) -> Tensor:  # type: ignore[override]
        """(B, Q, width): the queries' states for pictures (B, C, Y, X)."""
        return self.q_former.hidden(memory=self.vision.hidden(ids))

    def images(self, pixels: Tensor) -> Tensor:
        """(B, Q, D), each of length 1."""
        return self.queried(self.vision.hidden(pixels))

    def queried(self, seen_BSW: Tensor) -> Tensor:
        """The same from the ViT's states."""
        return F.normalize(self.image_out(self.q_former.hidden(memory=seen_BSW)), dim=-1)

    def texts(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, D), each of length 1; ids (B, T) begin with [CLS]."""
        states = self.q_former.hidden(ids, mask)
        if self.config.text == "first":
            return F.normalize(self.text_out(states[:, 0]), dim=-1)
        real_BT1 = torch.ones_like(states[..., :1]) if mask is None else mask[..., None].to(states.dtype)
        return F.normalize(self.text_out((states * real_BT1).sum(1) / real_BT1.sum(1)), dim=-1)

    def scores(self, pixels: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(pictures, texts) cosines."""
        return most_alike(self.images(pixels), self.texts(ids, mask))

    def matching(self, pixels: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, 2) scores that picture and text of a row do not belong together, and that they do."""
        return self.matched(self.vision.hidden(pixels), ids, mask)

    def matched(self, seen_BSW: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The same from the ViT's states."""
        states = self.q_former.hidden(ids, mask, memory=seen_BSW)
        return self.match(states[:, : states.shape[1] - ids.shape[1]]).mean(1)

    def written(self, seen_BSW: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, width): the states of texts that are read from left to right, each token seeing all queries."""
        queries, length = self.q_former.embed.query.shape[1], ids.shape[1]
        allow = torch.ones(queries + length, queries + length, dtype=torch.bool, device=ids.device).tril()
        allow[:queries, :queries] = True
        return self.q_former.hidden(ids, mask, memory=seen_BSW, allow=allow[None, None])[:, queries:]

    def add_head(self, kind: str, labels: int) -> None:
        """The vocabulary's head, BERT's form: its matrix is the embedding's."""
        if kind != "lm":
            raise ValueError("a model that compares pictures and texts has no other head than lm")
        q_former, weight = part("q_former", self.config.q_former), self.q_former.embed.token.weight
        before = transform(self.width, self.width, q_former.act, q_former.eps)
        nn.init.normal_(before[0].weight, std=0.02)  # type: ignore[arg-type]
        self.heads["lm"] = masked_head(self.q_former.embed, before).to(weight.device, weight.dtype).train(self.training)
        nn.init.zeros_(self.heads["lm"].out.bias)  # type: ignore[union-attr, arg-type]


@dataclass(frozen=True)
class BLIP2:
    vision: Mapping[str, Any] = field(default_factory=dict)  # settings of vit
    q_former: Mapping[str, Any] = field(default_factory=dict)  # settings of q_former, with texts
    shared: int = 256  # width of the space where pictures and texts are compared
    text: Literal["first", "mean"] = "first"  # which state of a text is compared; mean: of all its tokens, as sentence encoders have it
    temperature: bool = True  # whether the contrast has a temperature to learn; transformers' class has none
    lm: bool = False  # the head that writes texts, which transformers' class has not either

    types: ClassVar[tuple[str, ...]] = ("blip-2",)
    verified: ClassVar[str] = "transformers 5.23 Blip2ForImageTextRetrieval, both scores, fp64, both directions"

    @property
    def layers(self) -> int:
        return part("vit", self.vision).layers

    def build(self) -> Retrieval:
        vision, q_former = eyes(self.vision), part("q_former", self.q_former)
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
        return cls(read_part("vit", vision), q_former, read("image_text_hidden_size", 256), read("text_state", "first"))

    def fit(self, stored: set[str]) -> "BLIP2":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return replace(self, temperature="logit_scale" in stored, lm="cls.predictions.bias" in stored)

    def saved(self) -> "BLIP2":
        return self

    def to_config(self) -> dict[str, Any]:
        q_former = part("q_former", self.q_former)
        return {
            "architectures": ["Blip2ForImageTextRetrieval"], "model_type": "blip-2", "vision_config": part("vit", self.vision).to_config(),
            "qformer_config": q_former.to_config(), "num_query_tokens": q_former.queries, "image_text_hidden_size": self.shared,
            "text_state": self.text,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = prefixed(part("vit", self.vision).names({}), "vision.", VISION)
        table |= prefixed(part("q_former", self.q_former).names({}), "q_former.", QUERYING, OUTSIDE)
        for ours, theirs in {"image_out": "vision_projection", "text_out": "text_projection", "match": "itm_head"}.items():
            table |= linear(ours, theirs, True)
        table |= {"logit_scale": Name("logit_scale")} if self.temperature else {}
        return table | head_names({"lm": 0} if "lm" in heads else {})

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor."""
        return None if name.endswith("position_ids") or name.startswith("cls.predictions.decoder.") else name
