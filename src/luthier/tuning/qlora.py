"""QLoRA: low-rank terms over a base in 4 bits. Dettmers et al. 2023, arXiv:2305.14314, section 3.

y = dequantised(W) x + scale * B A x: every projection of the blocks is quantised and frozen, and low-rank terms go around all of them. The
rest (embeddings, norms, heads) keeps its precision. Removing the adapter leaves the quantised base; merging turns it back first. What is
saved is a peft LoRA, and loading puts it onto the base as it is stored, as peft does: figures then differ by what quantising took away.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.around import OnRows, Own
from luthier.anatomy.site import Site
from luthier.anatomy.table import transposed
from luthier.config import build
from luthier.core import nf4
from luthier.core.frozen import FrozenLinear
from luthier.core.nf4 import NF4
from luthier.core.quantise import Int8, quantise
from luthier.lookup import lookup
from luthier.tuning._attached import Attached
from luthier.tuning._common import projections


@dataclass(frozen=True)
class QLoRA:
    base: Literal["nf4", "int8"] = "nf4"  # what the projections are kept in: 4.127 bits a weight, or 8 with one scale for each output
    double: bool = True  # nf4: its scales quantised too; 4.5 bits without
    roles: tuple[str, ...] = ()  # which projections get low-rank terms; () all, as in the paper
    rank: int = 64
    alpha: float = 16.0
    dropout: float = 0.0  # on the input of A; the paper's is 0.1 for 7B and 13B, 0.05 above
    rslora: bool = False  # scale by alpha / sqrt(rank)
    ranks: dict[str, int] = field(default_factory=dict)  # role -> its own rank
    start: Literal["kaiming", "gaussian"] = "kaiming"  # A's: the released code's, or N(0, 1/rank^2)
    b_factor: float = 1.0  # B's learning rate over A's (LoRA+)
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole; such projections are not quantised
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    blocks: str | tuple[int, ...] | None = None  # where the low-rank terms are: "last 2" or numbers; every block is quantised
    verified: ClassVar[str] = "bitsandbytes 0.50.2, codes and weights to the bit; peft 0.21.2, files"

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        sites = self._sites(anatomy)
        fields = {key: value for key, value in asdict(self).items() if key not in ("base", "double")}
        roles = self.roles or tuple(projections(anatomy, self.also_train))
        attached = build(lookup("tuning", "lora"), fields | {"roles": roles}).attach(anatomy, name)
        for site in sites:  # last: nothing can fail any more
            site.replace(FrozenLinear(site.module, self._quantise, transposed(site.module)))
        attached.method = self
        return attached

    def _sites(self, anatomy: Anatomy) -> list[Site]:
        """The projections to quantise, each module once. Those of an earlier qlora stay as they are."""
        whole = {site.path for site in anatomy.find(*self.also_train)}
        sites = {site.path: site for site in anatomy.find(*projections(anatomy)) if site.path not in whole}
        known = {site.path: site.module for site in sites.values() if isinstance(site.module, FrozenLinear)}
        other = [path for path, module in known.items() if not isinstance(module.packed, NF4 if self.base == "nf4" else Int8)]
        if other:
            raise ValueError(f"{other[0]} is quantised already, and not in {self.base}: load the model afresh, or keep to one base")
        sites = {path: site for path, site in sites.items() if path not in known}
        owners = [(site, name) for site in sites.values() if site.around for name, each in site.around.adapters.items() if _trains(each)]
        if owners:
            raise ValueError(
                f"{owners[0][0].address} trains whole under the adapter {owners[0][1]!r}, so it cannot be quantised below it: tune with qlora first"
            )
        strange = [site for site in sites.values() if not (type(site.module) is nn.Linear or transposed(site.module))]
        if strange:
            kind = type(strange[0].module).__name__
            raise ValueError(f"{strange[0].path} is a {kind}, which qlora cannot quantise: take lora, or name its role in also_train")
        return list(sites.values())

    @property
    def _quantise(self) -> Callable[[Tensor], NF4 | Int8]:
        return quantise if self.base == "int8" else partial(nf4.quantise, double=self.double)


def _trains(adapter: nn.Module) -> bool:
    """Whether it gives the projection another weight."""
    parts = adapter.by_role.values() if isinstance(adapter, OnRows) else [adapter]
    return any(isinstance(part, Own) and "weight" in part.own for part in parts)
