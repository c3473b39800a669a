"""Full fine-tuning: every weight of the model trains."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from luthier.anatomy.anatomy import Anatomy
from luthier.core.frozen import FrozenLinear
from luthier.tuning._attached import Attached


@dataclass(frozen=True)
class Full:
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary; or the folder of a second tokenizer
    keep: tuple[str, ...] = ()  # what stays as it is, by the beginnings of parameters' names: blocks.0, embed; * stands for any part

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        if anatomy.adapters:
            raise ValueError(
                f"full takes the whole model, and adapters are on it ({', '.join(anatomy.adapters)}): let it stand alone, or merge them first"
            )
        if any(isinstance(module, FrozenLinear) for _, module in anatomy.modules()):
            raise ValueError("the model's projections are quantised and cannot train: load the model afresh, or tune with lora")
        parameters = dict(anatomy.net.named_parameters())
        for part in self.keep:
            kept = [name for name in parameters if fnmatchcase(name, part) or fnmatchcase(name, f"{part}.*")]
            if not kept:
                raise ValueError(f"full.keep names {part!r}, and no parameter's name begins so; `luthier inspect` shows the parts")
            parameters = {name: value for name, value in parameters.items() if name not in kept}
        return Attached(anatomy, name, self, parameters, whole=True)
