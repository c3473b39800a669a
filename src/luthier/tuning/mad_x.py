"""MAD-X: language adapters with invertible ones around the embedding. Pfeiffer et al. 2020, arXiv:2005.00052, sections 3.1 to 3.3.

One is trained for each language by masked language modelling. A task's adapter ({kind: adapter} in Pfeiffer's form) is then trained on top,
`anatomy.activate("en", "ner")`, and the language below it is swapped afterwards: `activate("de", "ner")`.

NICE: y1 = e1 + F(e2), y2 = e2 + G(y1) for the halves of a token's vector; undone before the vocabulary's head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.around import Adapter
from luthier.anatomy.site import Site
from luthier.core.feedforward import ACTIVATIONS
from luthier.tuning._attached import Attached
from luthier.tuning._bottleneck import ends, put, sublayers
from luthier.tuning._common import train_beside


@dataclass(frozen=True)
class MADX:
    """The adapter of one language."""

    reduction: int = 2  # of the model's width, after every feed-forward
    act: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] = "relu"
    invertible: bool = True  # with one around the embedding
    start: float = 0.0  # deviation of the matrices, cut at two; 0: the last of each is zero, so that step 0 is the base
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    blocks: str | tuple[int, ...] | None = None  # "last 2" or numbers; all when left out
    verified: ClassVar[str] = "adapters 1.3.0 (outputs on BERT, alone and with a task on top), the paper's counts"

    def __post_init__(self) -> None:
        if self.reduction < 1 or self.start < 0:
            raise ValueError(f"mad_x needs reduction >= 1 and start >= 0, not {self}")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        parameters: dict[str, nn.Parameter] = {}
        places = sublayers(anatomy, ("ffn",), self.blocks, norms=True)
        for place in places:
            down, up = ends(place.leaves.weight, max(1, place.width // self.reduction), self.start)
            parameters |= put(anatomy, name, place, down, up, self.act, 1.0, "sum")
        if self.invertible:
            parameters |= self._invertible(anatomy, name, places[0].width)
        return Attached(anatomy, name, self, parameters | train_beside(anatomy, name, self.also_train))

    def _invertible(self, anatomy: Anatomy, name: str, inner: int) -> dict[str, nn.Parameter]:
        around = [anatomy.embed] + ([anatomy.head] if anatomy.has("head") else [])
        if parted := [site for site in around if "weight" not in site.parameters]:
            raise ValueError(f"{parted[0].path} has several tables of vectors: nothing invertible fits; invertible: false")
        width = around[-1].weight.shape[1] if anatomy.has("head") else inner
        nice = NICE(anatomy.embed.weight, width, self.act, self.start)
        embedding(anatomy, width, inner).wrap(name, Enter(nice))
        if anatomy.has("head"):
            anatomy.head.wrap(name, Leave(nice))
        return {f"embed.{key}": parameter for key, parameter in nice.named_parameters()}


class NICE(nn.Module):
    """Additive coupling. Dinh et al. 2014, arXiv:1410.8516, section 3.2."""

    def __init__(self, like: Tensor, width: int, act: str, start: float):
        super().__init__()
        self.act, self.sizes = act, (width // 2, width - width // 2)
        first, second = self.sizes
        self.f_in, self.f_out = ends(like.new_empty(second, 0), second // 2, start, first)
        self.g_in, self.g_out = ends(like.new_empty(first, 0), first // 2, start, second)

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.split(self.sizes, -1)
        one = one + self._f(two)
        return torch.cat([one, two + self._g(one)], -1)

    def inverse(self, y: Tensor) -> Tensor:
        one, two = y.split(self.sizes, -1)
        two = two - self._g(one)
        return torch.cat([one - self._f(two), two], -1)

    def _f(self, two: Tensor) -> Tensor:
        return self.f_out(ACTIVATIONS[self.act](self.f_in(two)))

    def _g(self, one: Tensor) -> Tensor:
        return self.g_out(ACTIVATIONS[self.act](self.g_in(one)))


class Enter(Adapter):
    """Around the embedding."""

    def __init__(self, nice: NICE):
        super().__init__()
        self.nice = nice

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self.nice(base(x))


class Leave(Adapter):
    """Before the head: the inverse of what stands around the embedding, whose parameters these are."""

    def __init__(self, nice: NICE):
        super().__init__()
        self.twin = (nice,)  # no child: it is saved once

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return base(self.twin[0].inverse(x))


def embedding(anatomy: Anatomy, width: int, inner: int) -> Site:
    """The module that embeds the input, positions and norm included, where the model has one and it does not widen (to `inner`, from the
    `width` that the head reads); else the token table."""
    token = anatomy.embed
    whole = token.path.rpartition(".")[0]
    if whole and width == inner and not any(stack.path.startswith(f"{whole}.") for stack in anatomy.stacks.values()):
        return anatomy.at(whole)
    if token.weight.shape[1] != width:
        raise ValueError(
            f"the embedding is {token.weight.shape[1]} wide and the head reads {width}: nothing invertible fits; invertible: false"
        )
    return token
