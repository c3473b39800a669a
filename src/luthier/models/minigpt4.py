"""MiniGPT-4: a frozen ViT and Q-Former, one linear projection, a frozen language model. Zhu et al. 2023, arXiv:2304.10592, section 3.

A picture is so many tokens of the text: ids of `vocab` and above stand where its states go. The later form for Llama 2 leaves the Q-Former
out and projects four neighbouring patches at a time, joined end to end. BLIP-2's second stage (arXiv:2301.12597, 3.2) is the same wiring.

B rows, T tokens, N pictures, S states of a picture, D width of the language model
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from luthier.core.cache import Cache
from luthier.core.names import Name, linear
from luthier.core.transformer import Net, Sight
from luthier.models._config import Reader
from luthier.models._picture import OUTSIDE, QUERYING, VISION, eyes, part, prefixed, read_part, sight

LANGUAGE = "language_model."
LLAMA = {"llama": "llama", "mistral": "llama", "qwen2": "llama", "gpt2": "gpt2"}  # model_type to architecture


class Seeing(Net):
    """hidden(ids, images=pixels): the picture tokens of ids take the pictures' states, in order."""

    causal, pool = True, "last"

    def __init__(self, config: "MiniGPT4"):
        super().__init__()
        self.config, self.language = config, config.language_part.build()
        self.width = self.language.width
        self.vision = part("vit", config.vision).build()
        self.q_former = None if config.q_former is None else part("q_former", config.q_former).build()
        self.project = nn.Linear(config.seen, self.width)
        nn.init.normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)

    @property
    def vocab(self) -> int:  # type: ignore[override]
        return self.language.vocab

    @property
    def embed(self) -> nn.Module:
        return self.language.embed

    @property
    def heads(self) -> nn.ModuleDict:  # type: ignore[override]
        return self.language.heads

    @property
    def writer(self) -> Net:
        return self.language

    @property
    def sight(self) -> Sight:  # type: ignore[override]
        return sight(self.config.vision, self.config.states)

    def fuse(self) -> None:
        self.language.fuse()

    def look(self, pixels: Tensor) -> Tensor:
        """(N, S, D): what the language model is given of pictures (N, C, Y, X)."""
        states = self.vision.hidden(pixels)
        if self.q_former is not None:
            return self.project(self.q_former.hidden(memory=states))
        patches = states[:, 1:]  # without the class token
        return self.project(patches.unflatten(1, (-1, self.config.join)).flatten(2))

    def hidden(self, ids, mask=None, *, images: Tensor | None = None, seen: Tensor | None = None, cache: Cache | None = None, **inputs):  # type: ignore[override]
        """(B, T, D). images (N, C, Y, X): the pictures of all rows, one after the other; seen (N, S, D): or what `look` made of them."""
        picture_BT = ids >= self.vocab
        x, context = self.language.enter(ids.masked_fill(picture_BT, 0), mask, cache=cache, **inputs)
        seen = self.look(images) if images is not None else seen
        count = 0 if seen is None else seen.shape[0] * seen.shape[1]
        if count != int(picture_BT.sum()):
            raise ValueError(f"ids have {int(picture_BT.sum())} picture tokens, and the pictures have {count} states")
        if seen is not None:
            x = x.masked_scatter(picture_BT[..., None], seen.to(x.dtype))
        for x in self.language.layers(x, context):  # noqa: B007, B020  (the last one)
            pass
        return self.language.norm(x)

    def add_head(self, kind: str, labels: int) -> None:
        self.language.add_head(kind, labels)


@dataclass(frozen=True)
class MiniGPT4:
    vision: Mapping[str, Any] = field(default_factory=dict)  # settings of vit
    q_former: Mapping[str, Any] | None = field(default_factory=dict)  # settings of q_former; None: patches are joined instead
    language: Mapping[str, Any] = field(default_factory=dict)  # settings of the language model; arch: which one, llama if left out
    join: int = 4  # patches that become one token, without a Q-Former

    types: ClassVar[tuple[str, ...]] = ("minigpt4",)
    verified: ClassVar[str] = "transformers 5.23 Blip2ForConditionalGeneration with a llama, fp64; without a Q-Former: closed form"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "minigpt4-vicuna-7b": {
            "vision": {
                "width": 1408, "layers": 39, "heads": 16, "hidden": 6144, "patch": 14, "eps": 1e-6, "pooler": False,
                "kind": "blip_2_vision_model",
            },
            "q_former": {},
            "language": {"vocab": 32_000},
        },
        "minigpt4-llama2-7b": {
            "vision": {
                "width": 1408, "layers": 39, "heads": 16, "hidden": 6144, "image": 448, "patch": 14, "eps": 1e-6, "pooler": False,
                "kind": "blip_2_vision_model",
            },
            "q_former": None,
            "language": {"vocab": 32_000, "positions": 4096, "eps": 1e-5},
        },
    }  # fmt: skip

    @property
    def language_part(self) -> Any:
        settings = dict(self.language)
        return part(settings.pop("arch", "llama"), settings)

    @property
    def layers(self) -> int:
        return self.language_part.layers

    @property
    def states(self) -> int:
        """How many tokens a picture is."""
        vision = part("vit", self.vision)
        return (vision.image // vision.patch) ** 2 // self.join if self.q_former is None else part("q_former", self.q_former).queries

    @property
    def seen(self) -> int:
        """The width of what is projected."""
        width = part("vit", self.vision).width
        return width * self.join if self.q_former is None else part("q_former", self.q_former).width

    def build(self) -> Seeing:
        vision = eyes(self.vision)
        if self.q_former is None and (vision.image // vision.patch) ** 2 % self.join:
            raise ValueError(f"{(vision.image // vision.patch) ** 2} patches cannot be joined by {self.join}")
        if self.q_former is not None and part("q_former", self.q_former).memory != vision.width:
            raise ValueError(f"the Q-Former's memory={part('q_former', self.q_former).memory} is not the ViT's width={vision.width}")
        return Seeing(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MiniGPT4":
        read = Reader(config)
        text = read("text_config")
        kind = text.get("model_type")
        if kind not in LLAMA:
            raise ValueError(f"config.json's language model is {kind!r}; minigpt4 here takes {', '.join(LLAMA)}")
        q_former = read("qformer_config", None)
        if q_former is not None:
            q_former = read_part("q_former", q_former, vocab_size=0, num_query_tokens=read("num_query_tokens", 32))
        vision = {**read("vision_config"), "model_type": "blip_2_vision_model"}
        return cls(read_part("vit", vision), q_former, {"arch": LLAMA[kind], **read_part(LLAMA[kind], text)}, read("join", 4))

    def fit(self, stored: set[str]) -> "MiniGPT4":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return self

    def saved(self) -> "MiniGPT4":
        return self

    def to_config(self) -> dict[str, Any]:
        kind = {"architectures": ["Blip2ForConditionalGeneration"], "model_type": "blip-2"}
        shared = {
            "vision_config": part("vit", self.vision).to_config(), "text_config": self.language_part.to_config(),
            "image_token_index": self.language_part.vocab, "use_decoder_only_language_model": True,
        }  # fmt: skip
        if self.q_former is None:
            return {"architectures": ["MiniGPT4ForConditionalGeneration"], "model_type": "minigpt4", **shared, "join": self.join}
        q_former = part("q_former", self.q_former)
        return {**kind, **shared, "qformer_config": q_former.to_config(), "num_query_tokens": q_former.queries}

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = prefixed(part("vit", self.vision).names({}), "vision.", VISION)
        if self.q_former is not None:
            table |= prefixed(part("q_former", self.q_former).names({}), "q_former.", QUERYING, OUTSIDE)
        table |= linear("project", "language_projection", True)
        return table | prefixed(self.language_part.names(heads), "language.", LANGUAGE)

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor."""
        if name.startswith(LANGUAGE):
            inner = self.language_part.aliases(name.removeprefix(LANGUAGE))
            return None if inner is None else LANGUAGE + inner
        return None if name.endswith("position_ids") else name
