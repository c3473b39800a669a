"""One adapter's folder going onto one model: what every kind of adapter shares, and the plain kind that names its own tensors."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from luthier import lookup
from luthier.anatomy.around import Own
from luthier.anatomy.table import transposed
from luthier.config import build
from luthier.sources.checkpoint import some
from luthier.tuning._attached import Attached
from luthier.tuning._folder import DELTA, Folder
from luthier.tuning._names import Names
from luthier.tuning._own import NewRows, train_rows, vocabulary
from luthier.tuning._stored import adapters, parts

ENDS = {".lora_A.weight": "a", ".lora_B.weight": "b", ".lora_embedding_A": "a", ".lora_embedding_B": "b", ".lora_magnitude_vector": "m"}
BASE = ".base_layer.weight"


class Reading:
    """One folder going onto one model."""

    def __init__(self, names: Names, folder: Folder, name: str, trainable: bool = False):
        self.names, self.folder, self.name, self.trainable = names, folder, name, trainable
        self.anatomy, self.config = names.anatomy, folder.config
        self.parameters: dict[str, nn.Parameter] = {}
        self.memory: dict[str, Tensor] = {}
        self.tensors = {self._known(stored): value for stored, value in folder.tensors.items() if stored not in folder.filled}

    def attached(self) -> Attached:
        """The method, on the model, with the file's values."""
        raise NotImplementedError

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
        parts = [stored.removesuffix(end)] if end else _stems(stored)
        found = ((self.names.find(module), stored.removeprefix(module)) for module in parts)
        return next((module + tail for module, tail in found if module is not None), stored)


def _stems(stored: str) -> list[str]:
    """a.b for a.b.weight, then shorter ones: an adapter's tensors may have names of several parts."""
    parts = stored.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


class ReadPlain(Reading):
    """Methods that peft does not have: attached by their fields, then filled."""

    def attached(self) -> Attached:
        attached = build(lookup.lookup("tuning", self.folder.kind), self.config["luthier"]).attach(self.anatomy, self.name)
        self.fill(adapters(self.names, self.name))
        return attached

    def fill(self, wanted: dict[str, Tensor]) -> None:
        """Put the file's tensors into these and into everything that trains beside them. Refuses where they are not one to one."""
        used, missing, fills = set(wanted), list[str](), list[tuple[str, Tensor, Tensor]]()
        for stored, tensor in wanted.items():
            if stored in self.tensors:
                fills.append((stored, tensor, self.tensors[stored]))
            else:
                missing.append(stored)
        for path, wrapped in self.anatomy.arounds():
            for _, rows, part in parts(wrapped, self.name):
                for parameter, own in part.own.items() if isinstance(part, Own) else ():
                    stored = self.names.stored(path, parameter).path
                    value = self.names.read(path, parameter, self.tensors)
                    used.add(stored)
                    if value is None:
                        missing.append(stored)
                        continue
                    value = value.T if parameter == "weight" and transposed(wrapped.base) else value
                    fills.append((stored, own, value if rows is None else value[rows]))
                if isinstance(part, NewRows) and (delta := self.names.prefix(path) + DELTA) in self.tensors:
                    used.add(delta)
                    fills.append((delta, part.rows_KD, self.tensors[delta]))
        shapes = [f"{stored} is {tuple(v.shape)}, here {tuple(t.shape)}" for stored, t, v in fills if t.shape != v.shape]
        self.refuse(missing, self.tensors.keys() - used, shapes)
        for _, tensor, value in fills:
            set_values(tensor, value)


def set_values(tensor: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(value)
