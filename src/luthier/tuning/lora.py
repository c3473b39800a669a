"""LoRA: low-rank adaptation. Hu et al. 2021, arXiv:2106.09685, section 4.1; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732, eq. 4.

h = W x + scale * B A x around frozen projections, B zero at the start; scale = alpha / rank, or alpha / sqrt(rank) with rslora.
dora: Liu et al. 2024, arXiv:2402.09353; start pissa: Meng et al. 2024, arXiv:2404.02948; b_factor is LoRA+: Hayou et al. 2024,
arXiv:2402.12354. A pissa adapter is saved as plain LoRA of twice the rank, so the file fits the base as it is.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.site import Site
from luthier.tuning._attached import Attached
from luthier.tuning._common import train_beside
from luthier.tuning._lowrank import around, check_place, principal, start_of, wrap


@dataclass(frozen=True)
class LoRA:
    roles: tuple[str, ...] = ("q", "v")  # which projections; the paper's choice
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0  # on the input of A
    rslora: bool = False  # scale by alpha / sqrt(rank)
    ranks: dict[str, int] = field(default_factory=dict)  # role -> its own rank
    start: Literal["kaiming", "gaussian", "pissa"] = "kaiming"  # A's: the released code's, or N(0, 1/rank^2); pissa: W's main components
    dora: bool = False  # magnitude and direction apart
    b_factor: float = 1.0  # B's learning rate over A's (LoRA+; the paper's is 16)
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    blocks: str | tuple[int, ...] | None = None  # "last 2" or numbers; all when left out
    verified: ClassVar[str] = "peft 0.21.2, files both ways, 17 kinds of models; DoRA's gradients too"

    def __post_init__(self) -> None:
        if not self.roles:
            raise ValueError("lora needs roles: the projections it goes around, as [q, v]")
        if min([self.rank, *self.ranks.values()]) < 1:
            raise ValueError(f"a rank is 1 at least: rank={self.rank}, ranks={self.ranks}")
        if self.b_factor <= 0:
            raise ValueError(f"b_factor={self.b_factor:g}, but B's learning rate over A's is above 0")
        unused = self.ranks.keys() - set(self.roles)
        if unused:
            raise ValueError(f"ranks names {', '.join(sorted(unused))}, which roles {list(self.roles)} does not")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        parameters: dict[str, nn.Parameter] = {}
        memory: dict[str, Tensor] = {}
        for role in self.roles:
            for site in anatomy.find(role, layers=self.blocks):
                if site.adapter(name) is not None and f"{site.address}.a" in parameters:  # q and decoder.q name the same place
                    continue
                rank = self.ranks.get(role, self.rank)
                check_place(site, rank)
                scale = scale_of(self.alpha, rank, self.rslora)
                term = around(site, *self._start(site, rank, scale), scale, self.dropout)
                parameters |= wrap(site, name, term, self.dora)
                if self.start == "pissa":
                    term.starts_from(term.a_RI.detach().clone(), term.b_OR.detach().clone())
                    memory |= start_of(site, term)
        factors = {key: self.b_factor for key in parameters if key.endswith(".b")} if self.b_factor != 1 else {}
        named = parameters | train_beside(anatomy, name, self.also_train)
        return Attached(anatomy, name, self, named, factors=factors, memory=memory)

    def _start(self, site: Site, rank: int, scale: float) -> tuple[Tensor, Tensor]:
        weight = site.weight
        if self.start == "pissa":
            if isinstance(site.module, nn.Embedding):
                raise ValueError(f"pissa starts projections, and {site.address} is an embedding; leave it out of roles")
            return principal(weight, rank, scale)
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
