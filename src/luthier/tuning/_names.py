"""What the places of a model are called in Hugging Face's form, which is what peft's keys are made of."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.site import Site, bare, resolve
from luthier.anatomy.table import AROUND, is_projection, key_of, transposed, values_of
from luthier.core.names import Name, export_state, import_tensor
from luthier.sources._match import labels_of


@dataclass(frozen=True)
class Place:
    """A site, and the rows it has of the stored module (None: all of it)."""

    site: Site
    rows: Tensor | None


class Names:
    """The names of one model: for ours those of its architecture's table, for a transformers model its own paths."""

    def __init__(self, anatomy: Anatomy):
        self.anatomy = anatomy
        self.ours = anatomy.kind == ""
        self.table: dict[str, Name] = anatomy.net.config.names(labels_of(anatomy.net)) if self.ours else {}  # type: ignore[union-attr, operator, arg-type]
        self._known = {self._key(ours): name for ours, name in self.table.items()}  # a module may stand in two places
        self.places = self._places()
        self._paths = set(self.everything())

    @property
    def head(self) -> str:
        """The path of our vocabulary head: a tied one is in no table, and BERT's bias stands elsewhere in files."""
        return "lm_head" if self.anatomy.net.causal else "cls.predictions.decoder"

    def stored(self, path: str, parameter: str) -> Name:
        """Where a parameter of a place is stored."""
        if not self.ours:
            return Name(f"{path}.{parameter}")
        if path == "heads.lm.out":
            return Name(f"{self.head}.{parameter}")
        ours = f"{path}.{parameter}"
        return self.table[ours] if ours in self.table else self._known[self._key(ours)]

    def module(self, site: Site) -> str:
        """The path of the stored module that holds a place."""
        return self.stored(site.path, "weight").path.removesuffix(".weight")

    def prefix(self, path: str, role: str | None = None) -> str:
        """What the tensors of an adapter stand under: the stored module it is around, and the role where several share that module."""
        try:
            module = self.stored(path, "weight").path.removesuffix(".weight")
        except KeyError:  # a sublayer, which no file knows
            return path
        places = self.places.get(module, [])
        role = role or next((place.site.role for place in places if place.site.path == path), "")
        return f"{module}.{role}" if len(places) > 1 else module

    def total(self, module: str) -> int:
        """How many output rows the stored module has."""
        places = self.places[module]
        if self.ours:
            return max(int(place.rows.max()) + 1 if place.rows is not None else place.site.weight.shape[0] for place in places)
        base = places[0].site.module
        return base.weight.shape[1] if transposed(base) else base.weight.shape[0]  # type: ignore[index, return-value]

    def find(self, module: str) -> str | None:
        """The module of a stored path, also where the file was written for the bare backbone, or the other way round."""
        stem = getattr(self.anatomy.root, "base_model_prefix", "")
        alias = (self.anatomy.net.config.aliases(f"{module}.weight") or "") if self.ours else f"{stem}.{module}.weight"  # type: ignore[union-attr, operator]
        known = (module, alias.removesuffix(".weight"), module.removeprefix(f"{stem}."))
        return next((path for path in known if path in self._paths), None)

    def fan_in_fan_out(self, module: str) -> bool:
        """Whether the stored weight is (d_in, d_out)."""
        site = self.places[module][0].site
        return self.stored(site.path, "weight").transposed or transposed(site.module)

    def export(self, own: dict[tuple[str, str], Tensor], whole: bool) -> dict[str, Tensor]:
        """Stored tensors of some parameters (path, name); rows that are not among them come from the base. whole: their modules whole."""
        if not self.ours:
            rest = {(path, name): value for path, _ in own for name, value in values_of(self.anatomy.at(path).module).items()}
            return {self.stored(*key).path: value.detach().contiguous() for key, value in ((rest if whole else {}) | own).items()}
        if whole and any(path == "heads.lm.out" for path, _ in own):
            head = self.anatomy.at("heads.lm.out").module._parameters
            own = {("heads.lm.out", name): value.detach() for name, value in head.items() if value is not None} | own
        heads = {self.stored(path, name).path: value for (path, name), value in own.items() if path == "heads.lm.out"}
        values = {self._key(f"{path}.{name}"): value for (path, name), value in own.items()}
        wanted = {self.stored(path, name).path for path, name in own if path != "heads.lm.out"}
        modules = {path.rpartition(".")[0] for path in wanted} if whole else set()
        table = {ours: name for ours, name in self.table.items() if name.path in wanted or name.path.rpartition(".")[0] in modules}
        table = {ours: name for ours, name in table.items() if ours.rpartition(".")[0] != "heads.lm.out"}
        return export_state(table, {ours: values.get(self._key(ours), self._value(ours)).detach() for ours in table}) | heads

    def read(self, path: str, parameter: str, tensors: dict[str, Tensor]) -> Tensor | None:
        """The value of a parameter out of stored tensors, as its module holds it; None where it is not among them."""
        name = self.stored(path, parameter)
        return import_tensor(name, tensors[name.path]) if name.path in tensors else None

    def _value(self, ours: str) -> Tensor:
        path, _, parameter = ours.rpartition(".")
        return values_of(bare(resolve(self.anatomy.root, path)))[parameter]

    def _key(self, ours: str) -> int:
        path, _, parameter = ours.rpartition(".")
        return key_of(bare(resolve(self.anatomy.root, path)), parameter)

    def _places(self) -> dict[str, list[Place]]:
        """Stored module -> the places in it: by role, and every other projection or embedding."""
        sites = self.anatomy.find(*self.anatomy.roles) + [self.anatomy.find(role)[0] for role in AROUND if self.anatomy.has(role)]
        by_role = {site.path for site in sites}
        sites += [self.anatomy.at(path) for path, module in self.anatomy.modules() if path not in by_role and _holds_weight(module)]
        places: dict[str, list[Place]] = {}
        for site in sites:
            try:
                name = self.stored(site.path, "weight")
            except KeyError:  # a part that no file holds
                continue
            rows = site.rows if name.rows is None else name.index(len(site.weight))
            places.setdefault(name.path.removesuffix(".weight"), []).append(Place(site, rows))
        return places

    def everything(self) -> list[str]:
        """The paths of all stored modules, parents included."""
        if not self.ours:
            return [path for path, _ in self.anatomy.modules() if path]
        leaves = {name.path.rpartition(".")[0] for name in self.table.values()} | {self.head}
        return sorted({".".join(parts[: i + 1]) for parts in (leaf.split(".") for leaf in leaves) for i in range(len(parts))})


def _holds_weight(module: nn.Module) -> bool:
    return is_projection(module) or isinstance(module, nn.Embedding)


def suffixes(module: str) -> Iterable[str]:
    """Shorter and longer ends of a path: q_proj, self_attn.q_proj, ..."""
    parts = module.split(".")
    return (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
