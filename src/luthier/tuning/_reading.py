"""One adapter's folder going onto one model: what every kind of adapter shares, and those that are other values of parameters."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from luthier import lookup
from luthier.anatomy.around import OnRows, Own
from luthier.anatomy.table import transposed
from luthier.config import build
from luthier.sources.checkpoint import some
from luthier.tuning._attached import Attached
from luthier.tuning._folder import DELTA, Folder
from luthier.tuning._names import Names
from luthier.tuning._own import NewRows, train_rows, vocabulary

ENDS = {".lora_A.weight": "a", ".lora_B.weight": "b", ".lora_embedding_A": "a", ".lora_embedding_B": "b"}
BASE = ".base_layer.weight"


class Reading:
    """One folder going onto one model."""

    def __init__(self, names: Names, folder: Folder, name: str):
        self.names, self.folder, self.name = names, folder, name
        self.anatomy, self.config = names.anatomy, folder.config
        self.parameters: dict[str, nn.Parameter] = {}
        self.tensors = {self._known(stored): value for stored, value in folder.tensors.items()}

    def refuse(self, missing: Iterable[str], unexpected: Iterable[str], shapes: Iterable[str] = ()) -> None:
        """One sentence with everything that does not fit."""
        problems = {"missing": sorted(missing), "unexpected": sorted(unexpected), "of another shape": sorted(shapes)}
        told = [f"{what}: {some(found)}" for what, found in problems.items() if found]
        if told:
            who = type(self.anatomy.root).__name__
            what = (
                f"{self.folder.path}: the adapter is for another model"
                if len(problems["unexpected"]) == len(self.tensors) or shapes
                else str(self.folder.path)
            )
            base = self.config.get("base_model_name_or_path")
            raise ValueError(f"{what}: its tensors do not fit {who}{f' (it was made for {base})' if base else ''}; {'; '.join(told)}")

    def rows(self) -> None:
        """Vectors of added tokens."""
        indices = self.config.get("trainable_token_indices") or {}
        for stored in [stored for stored in self.tensors if stored.endswith(DELTA)]:
            module = stored.removesuffix(DELTA)
            site = next((site for site in vocabulary(self.anatomy) if self.names.module(site) == module), None)
            if site is None:
                self.refuse((), [stored])
            assert site is not None
            ids = next((ids for key, ids in indices.items() if module.endswith(key)), []) if isinstance(indices, dict) else indices
            have = site.module.weight.shape[0]  # type: ignore[union-attr]
            if max(ids, default=0) >= have:
                raise ValueError(
                    f"{self.folder.path}: it trains token {max(ids)}, and the model's vocabulary ends at {have - 1}; load it with luthier.load "
                    "(adapter=...), which grows the vocabulary, or grow it first"
                )
            named = train_rows(self.anatomy, self.name, ids, [site])
            if next(iter(named.values())).shape != self.tensors[stored].shape:
                self.refuse((), (), [stored])
            set_values(next(iter(named.values())), self.tensors[stored])
            self.parameters |= named

    def _known(self, stored: str) -> str:
        """A stored name as this model has it: the file may be of the bare backbone, or the model may."""
        end = next((end for end in (*ENDS, DELTA, BASE) if stored.endswith(end)), "")
        module, tail = (stored.removesuffix(end), end) if end else (stored.rpartition(".")[0], "." + stored.rpartition(".")[2])
        found = self.names.find(module)
        return stored if found is None else found + tail


class ReadValues(Reading):
    """Our own kinds: some of the model's parameters have other values."""

    def attached(self) -> Attached:
        method = build(lookup.lookup("tuning", self.folder.kind), self.config["luthier"])
        attached = method.attach(self.anatomy, self.name)
        used: set[str] = set()
        missing: list[str] = []
        shapes: list[str] = []
        for path, wrapped in self.anatomy.arounds():
            adapter = dict(wrapped.adapters.items()).get(self.name)
            parts = adapter.items() if isinstance(adapter, OnRows) else [(None, adapter)]
            for rows, part in parts:
                for parameter, own in part.own.items() if isinstance(part, Own) else ():
                    stored = self.names.stored(path, parameter).path
                    value = self.names.read(path, parameter, self.tensors)
                    used.add(stored)
                    if value is None:
                        missing.append(stored)
                        continue
                    value = value.T if parameter == "weight" and transposed(wrapped.base) else value
                    value = value if rows is None else value[rows]
                    shapes += [stored] if value.shape != own.shape else []
                    set_values(own, value if value.shape == own.shape else own)
            if (
                isinstance(adapter, NewRows)
                and (delta := f"{self.names.stored(path, 'weight').path.removesuffix('.weight')}{DELTA}") in self.tensors
            ):
                used.add(delta)
                set_values(adapter.rows_KD, self.tensors[delta])
        self.refuse(missing, self.tensors.keys() - used, shapes)
        return attached


def set_values(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)
