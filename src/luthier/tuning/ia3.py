"""(IA)^3: learnt factors on keys, values and feed-forward activations. Liu et al. 2022, arXiv:2205.05638, section 3.3.

softmax(Q (l_k * K)^T) (l_v * V) in every attention, and W_2 (l_ff * act(W_1 x)) in every feed-forward; all ones at the start. For a gated
feed-forward the factor is on act(W_g x) * W_u x, which is what `down` takes in.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.site import Site
from luthier.anatomy.table import is_projection
from luthier.tuning._attached import Attached
from luthier.tuning._common import train_beside
from luthier.tuning._scale import ScaleIn, ScaleOut, ones


@dataclass(frozen=True)
class IA3:
    roles: tuple[str, ...] = ("k", "v")  # whose output is scaled; the paper's choice
    inner: tuple[str, ...] = ("down",)  # whose input is scaled; the paper's choice
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    blocks: str | tuple[int, ...] | None = None  # "last 2" or numbers; all when left out
    verified: ClassVar[str] = "peft 0.21.2, files both ways, 16 kinds of models; T-Few's parameter counts"

    def __post_init__(self) -> None:
        if not (self.roles or self.inner):
            raise ValueError("ia3 needs roles or inner: which outputs or inputs it scales")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        parameters: dict[str, nn.Parameter] = {}
        for site in _sites(anatomy, self.roles, self.blocks):
            site.wrap(name, adapter := ScaleOut(ones(site.weight.shape[0], site.weight)))
            parameters[f"{site.address}.scale"] = adapter.scale
        for site in _sites(anatomy, self.inner, self.blocks):
            site.wrap(name, adapter := ScaleIn(ones(site.weight.shape[1], site.weight)))
            parameters[f"{site.address}.scale"] = adapter.scale
        return Attached(anatomy, name, self, parameters | train_beside(anatomy, name, self.also_train))


def _sites(anatomy: Anatomy, roles: tuple[str, ...], blocks: str | tuple[int, ...] | None) -> list[Site]:
    sites = anatomy.find(*roles, layers=blocks)
    if other := [site.address for site in sites if not is_projection(site.module)]:
        raise ValueError(f"ia3 scales projections, and {other[0]} is none; take q, k, v, o, up, gate or down")
    return sites
