"""A small diffusion model of pictures: a transformer over the patches of a noised picture, which is told the step and the label.

Objective and samplers: Ho et al. 2020 (DDPM), arXiv:2006.11239; step and label are added to every patch, as DDPM adds the step in its U-Net
(appendix B). Made to be trained here from nothing; there are no published weights of this form.

B pictures, C channels, Y and X pixels, T patches, D width
"""

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.attention import Attention, Mask
from luthier.core.block import Context, PreNorm
from luthier.core.feedforward import FeedForward
from luthier.core.names import Name
from luthier.core.transformer import Transformer, initialise
from luthier.models._config import Reader, check_heads


def waves(step_B: Tensor, width: int) -> Tensor:
    """(B, D): cosines and sines of the step, rates from 1 down to 1/10000."""
    rate = torch.exp(-math.log(10_000.0) * torch.arange(width // 2, device=step_B.device).float() / (width // 2))
    angle = step_B.float()[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], -1)


class Noised(nn.Module):
    """(B, C, Y, X) to (B, T, D): patches, with learned places, the step and the label (the last one is no label) added."""

    def __init__(self, config: "DDPM"):
        super().__init__()
        self.width = config.width
        self.token = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.step = nn.Sequential(nn.Linear(config.width, config.width), nn.SiLU(), nn.Linear(config.width, config.width))
        self.label = nn.Embedding(config.labels + 1, config.width)
        self.position = nn.Parameter(torch.zeros(1, (config.image // config.patch) ** 2, config.width))

    def forward(self, pixels: Tensor, step_B: Tensor, label_B: Tensor) -> Tensor:
        told_BD = self.step(waves(step_B, self.width).to(pixels.dtype)) + self.label(label_B)
        return self.token(pixels).flatten(2).mT + self.position + told_BD[:, None]


class Denoiser(Transformer):
    """net(pixels, steps, labels): the noise (B, C, Y, X) in pictures (B, C, Y, X) at steps (B,); labels (B,) or None."""

    embed: Any

    @property
    def vocab(self) -> int:  # type: ignore[override]
        return 0

    @property
    def nothing(self) -> int:
        """The label that stands for none."""
        return self.config.labels

    def enter(self, ids: Tensor, mask: Tensor | None = None, *others: Any, steps: Tensor, labels: Tensor | None = None, **extra: Any):  # type: ignore[override]
        labels = torch.full_like(steps, self.nothing) if labels is None else labels
        return self.embed(ids, steps, labels), Context(Mask())

    def forward(self, ids: Tensor, steps: Tensor, labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
        patches_BPE = self.heads["noise"](self.hidden(ids, steps=steps, labels=labels))
        size = self.config.patch
        return nn.functional.fold(patches_BPE.mT, ids.shape[-2:], size, stride=size)

    def hidden(self, ids, mask=None, **inputs):  # type: ignore[override]
        """(B, T, D) last states; steps (B,) and labels (B,) by name."""
        x, context = self.enter(ids, mask, **inputs)
        for x in self.layers(x, context):  # noqa: B007, B020  (the last one)
            pass
        return self.norm(x)

    def add_head(self, kind: str, labels: int) -> None:
        raise ValueError("a model that takes noise away has no other heads; vit classifies pictures")


class NoiseHead(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.out = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


@dataclass(frozen=True)
class DDPM:
    width: int = 64
    layers: int = 4
    heads: int = 4
    hidden: int = 256
    image: int = 8  # pixels a side
    patch: int = 2
    channels: int = 1
    labels: int = 10
    steps: int = 1000  # of noise
    eps: float = 1e-5
    act: str = "gelu"

    types: ClassVar[tuple[str, ...]] = ("ddpm",)
    verified: ClassVar[str] = "objective and samplers: closed form on normal distributions; the net has no counterpart elsewhere"
    untrained: ClassVar[str] = "no run file trains it alone: it draws pictures of digits; see luthier.models.ddpm"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"ddpm-digits": {}}

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        if self.image % self.patch or self.width % 2:
            raise ValueError(f"image={self.image} must divide by patch={self.patch}, and width={self.width} by 2")

    def build(self) -> Denoiser:
        norm = partial(nn.LayerNorm, self.width, self.eps)
        blocks = [
            PreNorm(Attention(self.width, self.heads), FeedForward(self.width, self.hidden, self.act), norm) for _ in range(self.layers)
        ]
        embed: Any = Noised(self)
        net = Denoiser(
            self, embed, blocks, norm(), None, causal=False, width=self.width, init_std=self.width**-0.5
        )  # small nets learn faster so
        net.heads["noise"] = NoiseHead(self.width, self.channels * self.patch**2)
        initialise(net)
        nn.init.trunc_normal_(embed.position, std=0.02)
        return net

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "DDPM":
        read = Reader(config)
        return cls(**{field.name: read(field.name) for field in fields(cls)})

    def fit(self, stored: set[str]) -> "DDPM":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return self

    def saved(self) -> "DDPM":
        return self

    def to_config(self) -> dict[str, Any]:
        return {"architectures": ["LuthierDDPM"], "model_type": "ddpm"} | vars(self)

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        """The form is ours alone, and so are the names."""
        with torch.device("meta"):
            return {name: Name(name) for name, _ in self.build().named_parameters()}

    def aliases(self, name: str) -> str | None:
        return name
