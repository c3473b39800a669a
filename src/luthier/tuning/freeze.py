"""Partial fine-tuning: some blocks, roles, norms or the embedding train, the rest is frozen. Howard & Ruder 2018, arXiv:1801.06146, 3.3."""

from dataclasses import dataclass

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.table import is_norm
from luthier.tuning._attached import Attached
from luthier.tuning._common import train_beside
from luthier.tuning._own import everything, in_blocks


@dataclass(frozen=True)
class Freeze:
    """What trains; the rest is frozen."""

    blocks: str | tuple[int, ...] | None = "last 2"  # "last 2" or numbers; [] for no whole block, null for every one
    roles: tuple[str, ...] = ()  # within those blocks these roles only; left out, whole blocks
    norms: bool = False  # every norm of the model
    also_train: tuple[str, ...] = ()  # embed, head, norm
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        sites = anatomy.find(*self.roles, layers=self.blocks) if self.roles else in_blocks(anatomy, self.blocks)
        if self.norms:
            sites += [anatomy.at(path) for path, module in anatomy.modules() if is_norm(module)]
        return Attached(anatomy, name, self, train_beside(anatomy, name, self.also_train, everything(sites)))
