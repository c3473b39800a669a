"""What reading peft's files has in common: settings that must be known, and modules saved whole."""

from typing import Any

import torch
from torch import Tensor

from luthier.anatomy.site import Site
from luthier.anatomy.table import AROUND, transposed
from luthier.tuning._folder import CONFIG, DELTA, TABLE
from luthier.tuning._own import train_own
from luthier.tuning._reading import Reading, set_values

ABOUT = {"auto_mapping", "base_model_name_or_path", "revision", "peft_type", "task_type", "inference_mode", "peft_version", "luthier"}
DEFAULTS = {"bias": "none", "megatron_core": "megatron.core", "qalora_group_size": 16}


class Peft(Reading):
    """A folder that peft may have written."""

    known: frozenset[str]  # settings of this method that are read

    def check_settings(self) -> None:
        strange = {
            key: value for key, value in self.config.items()
            if key not in self.known | ABOUT and (value != DEFAULTS[key] if key in DEFAULTS else bool(value))
        }  # fmt: skip
        if strange:
            told = ", ".join(f"{key}={value!r}" for key, value in sorted(strange.items()))
            raise ValueError(f"{self.folder.path / CONFIG}: settings that are not read here and would change what the adapter does: {told}")

    @property
    def noted(self) -> dict[str, Any]:
        """The fields of the method, where Luthier wrote the folder."""
        return {key: value for key, value in self.folder.method.items() if key != "kind"}

    def tables_and_places(self) -> tuple[dict[str, Tensor], list[tuple[Site, str]]]:
        """The vectors of prompts and prefixes by where they stand ("" in peft's own files), and the parameters stored whole beside them."""
        tables = {name.removeprefix(TABLE).removeprefix("."): value for name, value in self.tensors.items() if name.startswith(TABLE)}
        own = {name for name in self.tensors if not name.startswith(TABLE) and not name.endswith(DELTA)}
        places = self.own_places(own)
        covered = {self.names.stored(site.path, parameter).path for site, parameter in places}
        self.refuse([] if tables else [TABLE], own - covered)
        return tables, places

    def own_places(self, stored: set[str]) -> list[tuple[Site, str]]:
        """The parameters that stored tensors give whole."""
        found = []
        roles = {site.path: site for role in AROUND if self.anatomy.has(role) for site in self.anatomy.find(role)}
        for path, module in self.anatomy.modules():
            for parameter, value in module._parameters.items():
                if value is None or (parameter not in ("weight", "bias") and f"{path}.{parameter}" not in stored):
                    continue
                try:
                    if self.names.stored(path, parameter).path in stored:
                        found.append((roles.get(path) or self.anatomy.at(path), parameter))
                except KeyError:  # a part that no file holds
                    continue
        return found

    def attach_own(self, places: list[tuple[Site, str]]) -> None:
        """Tied where the base is and the file agrees; apart where peft has trained them apart."""
        values = {(site.path, parameter): self._value(site, parameter) for site, parameter in places}
        self.refuse((), (), [f"{s.path}.{p}" for s, p in places if values[s.path, p].shape != s.parameters[p].shape])
        alone = {(site.path, parameter) for site, parameter in places if not self._agrees(site, parameter, values)}
        named = train_own(self.anatomy, self.name, places, alone)
        for site, parameter in places:  # of tied places one gives the name
            if f"{site.address}.{parameter}" in named:
                set_values(named[f"{site.address}.{parameter}"], values[site.path, parameter])
        self.parameters |= named

    def _agrees(self, site: Site, parameter: str, values: dict[tuple[str, str], Tensor]) -> bool:
        """Whether the file gives one value to every place that shares this parameter."""
        base = site.module._parameters[parameter]
        assert base is not None
        twins = [(twin.path, name) for twin, name in self.anatomy.owners(base) if not list(twin.module.children())]
        return all(twin in values and torch.equal(values[twin], values[site.path, parameter]) for twin in twins)

    def _value(self, site: Site, parameter: str) -> Tensor:
        value = self.names.read(site.path, parameter, self.tensors)
        assert value is not None
        return value.T if parameter == "weight" and transposed(site.module) else value
