"""LoRA: low-rank adaptation. Hu et al. 2021, arXiv:2106.09685, section 4.1; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732, eq. 4.

h = W x + scale * B A x around frozen projections, B zero at the start; scale = alpha / rank, or alpha / sqrt(rank) with rslora.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.site import Site
from luthier.tuning._attached import Attached
from luthier.tuning._common import train_beside
from luthier.tuning._lowrank import around


@dataclass(frozen=True)
class LoRA:
    roles: tuple[str, ...] = ("q", "v")  # which projections; the paper's choice
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0  # on the input of A
    rslora: bool = False  # scale by alpha / sqrt(rank)
    ranks: dict[str, int] = field(default_factory=dict)  # role -> its own rank
    start: Literal["kaiming", "gaussian"] = "kaiming"  # A's: the released code's, or N(0, 1/rank^2)
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    blocks: str | tuple[int, ...] | None = None  # "last 2" or numbers; all when left out
    verified: ClassVar[str] = "peft 0.21.2, files both ways, 17 kinds of models"

    def __post_init__(self) -> None:
        if min([self.rank, *self.ranks.values()]) < 1:
            raise ValueError(f"a rank is 1 at least: rank={self.rank}, ranks={self.ranks}")
        unused = self.ranks.keys() - set(self.roles)
        if unused:
            raise ValueError(f"ranks names {', '.join(sorted(unused))}, which roles {list(self.roles)} does not")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        parameters: dict[str, nn.Parameter] = {}
        for role in self.roles:
            for site in anatomy.find(role, layers=self.blocks):
                if site.adapter(name) is not None and f"{site.address}.a" in parameters:  # q and decoder.q name the same place
                    continue
                rank = self.ranks.get(role, self.rank)
                adapter = around(site, *self._start(site, rank), scale_of(self.alpha, rank, self.rslora), self.dropout)
                site.wrap(name, adapter)
                parameters |= {f"{site.address}.a": adapter.a_RI, f"{site.address}.b": adapter.b_OR}
        return Attached(anatomy, name, self, parameters | train_beside(anatomy, name, self.also_train))

    def _start(self, site: Site, rank: int) -> tuple[Tensor, Tensor]:
        weight = site.weight
        if isinstance(site.module, nn.Embedding):  # the other way round: A zero, B normal
            vocab, width = weight.shape
            return weight.new_zeros(rank, vocab), weight.new_empty(width, rank).normal_()
        d_out, d_in = weight.shape
        a_RI = weight.new_empty(rank, d_in)
        if self.start == "gaussian":
            nn.init.normal_(a_RI, std=1 / rank)
        else:
            nn.init.kaiming_uniform_(a_RI, a=5**0.5)
        return a_RI, weight.new_zeros(d_out, rank)


def scale_of(alpha: float, rank: int, rslora: bool) -> float:
    return alpha / (rank**0.5 if rslora else rank)
