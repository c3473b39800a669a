"""BitFit: train the biases only. Ben Zaken et al. 2021, arXiv:2106.10199, section 3."""

from dataclasses import dataclass
from typing import ClassVar

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.table import is_norm, is_projection
from luthier.tuning._attached import Attached
from luthier.tuning._common import train_beside
from luthier.tuning._own import Place, in_blocks


@dataclass(frozen=True)
class BitFit:
    roles: tuple[str, ...] = ()  # () every bias of the model; (q, up) is the paper's smaller choice
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    blocks: str | tuple[int, ...] | None = None  # "last 2" or numbers; all when left out
    verified: ClassVar[str] = "the paper's parameter counts for BERT base and large"

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        places = self._places(anatomy)
        if not places:
            who = type(anatomy.root).__name__
            raise ValueError(
                f"{who} has no bias{' there' if self.roles or self.blocks is not None else ''}: bitfit has nothing to train; take lora, or freeze with norms"
            )
        return Attached(anatomy, name, self, train_beside(anatomy, name, self.also_train, places))

    def _places(self, anatomy: Anatomy) -> list[Place]:
        """Biases by the type of their module, never by name: a table called relative_attention_bias is none."""
        if self.roles:
            return [(site, "bias") for site in anatomy.find(*self.roles, layers=self.blocks) if site.bias is not None]
        if self.blocks is not None:
            sites = [site for site in in_blocks(anatomy, self.blocks) if is_projection(site.module) or is_norm(site.module)]
            return [(site, "bias") for site in sites if site.bias is not None]
        owners = [(path, module) for path, module in anatomy.modules() if is_projection(module) or is_norm(module)]
        return [(anatomy.at(path), "bias") for path, module in owners if module._parameters.get("bias") is not None]
