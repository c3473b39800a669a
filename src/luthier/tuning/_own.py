"""Existing parameters that train: the place gets its own trainable copy, the base keeps its value, and a tie stays a tie."""

from collections.abc import Container, Iterable

import torch
from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy, pick
from luthier.anatomy.around import Adapter, Own, Values
from luthier.anatomy.site import Site, walk
from luthier.anatomy.table import AROUND, values_of
from luthier.core.frozen import FrozenLinear

Place = tuple[Site, str]  # a site and the name of one of its parameters


def everything(sites: Iterable[Site]) -> list[Place]:
    """All parameters of these places."""
    return [(site, name) for site in sites for name in site.parameters]


def inside(anatomy: Anatomy, module: nn.Module) -> list[Site]:
    """Every place within a module (itself included) that holds parameters of its own, each once."""
    within = {id(part) for _, part in walk(module)}
    return [anatomy.at(path) for path, part in anatomy.modules() if id(part) in within and values_of(part)]


def in_blocks(anatomy: Anatomy, blocks: str | int | Iterable[int] | None) -> list[Site]:
    """The same of these blocks of every stack ("last 2" or numbers)."""
    chosen = [stack.blocks[i] for stack in anatomy.stacks.values() for i in pick(blocks, len(stack.blocks))]
    return [site for block in chosen for site in inside(anatomy, block)]


def train_own(anatomy: Anatomy, name: str, places: Iterable[Place], alone: Container[tuple[str, str]] = ()) -> dict[str, nn.Parameter]:
    """Give these places trainable copies under the adapter's name; a tied parameter is one copy wherever it stands.

    alone: (path, parameter) of places whose tie ends here. Returns the copies by name: address.parameter.
    """
    where = _index(anatomy)
    chosen: dict[tuple[str, str], tuple[Site, dict[str, nn.Parameter]]] = {}  # (path, role on fused rows) -> its copies
    copies: dict[int, nn.Parameter] = {}
    named: dict[str, nn.Parameter] = {}
    for site, parameter in places:
        if parameter == "weight" and isinstance(site.module, FrozenLinear):
            raise ValueError(
                f"{site.address} is quantised and cannot train: keep it out of the method, or name it in qlora's also_train, which leaves it as it is"
            )
        if site.rows is not None:
            copy = _copy(site.parameters[parameter])
            named[f"{site.address}.{parameter}"] = copy
            chosen.setdefault((site.path, site.role), (site, {}))[1][parameter] = copy
            continue
        if (site.path, parameter) in alone:
            copy = named[f"{site.address}.{parameter}"] = _copy(site.parameters[parameter])
            chosen.setdefault((site.path, ""), (site, {}))[1][parameter] = copy
            continue
        base = site.module._parameters[parameter]
        if base is None or id(base) in copies:
            continue
        copies[id(base)] = _copy(site.parameters[parameter])
        if len(where[id(base)]) > 1:  # tied: the first place gives the name, whichever was asked for
            site, parameter = _first(anatomy, where[id(base)])
        named[f"{site.address}.{parameter}"] = copies[id(base)]
        for path, other in where[id(base)]:
            chosen.setdefault((path, ""), (site if path == site.path else anatomy.at(path), {}))[1][other] = copies[id(base)]
    for site, own in chosen.values():
        site.wrap(name, Own(own))
    return named


class NewRows(Adapter):
    """Own vectors for some tokens of an embedding or a vocabulary head."""

    mergeable = True

    def __init__(self, ids_K: Tensor, rows_KD: nn.Parameter):
        super().__init__()
        self.register_buffer("ids_K", ids_K, persistent=False)
        self.rows_KD = rows_KD

    def values(self, current: Values) -> Values:
        return {"weight": current["weight"].index_copy(0, self.get_buffer("ids_K"), self.rows_KD.to(current["weight"].dtype))}

    merged = values


def train_rows(anatomy: Anatomy, name: str, ids: list[int], sites: list[Site] | None = None) -> dict[str, nn.Parameter]:
    """Train the vectors of these tokens alone, in the embedding and in the head (one and the same where they are tied)."""
    named: dict[str, nn.Parameter] = {}
    index = torch.tensor(ids)
    for site in vocabulary(anatomy) if sites is None else sites:
        weight = site.module._parameters["weight"]
        assert weight is not None
        rows = named[f"{site.address}.rows"] = _copy(weight.detach()[index.to(weight.device)])
        for place, _ in anatomy.owners(weight):
            place.wrap(name, NewRows(index.to(weight.device), rows))
    return named


def vocabulary(anatomy: Anatomy) -> list[Site]:
    """The embedding, and the head where its weight is another."""
    return [anatomy.embed] if anatomy.tied or not anatomy.has("head") else [anatomy.embed, anatomy.head]


def _first(anatomy: Anatomy, twins: list[tuple[str, str]]) -> Place:
    around = {site.path: site for role in AROUND if anatomy.has(role) for site in anatomy.find(role)}
    path, name = next((twin for twin in twins if twin[0] in around), twins[0])
    return around.get(path) or anatomy.at(path), name


def _copy(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(memory_format=torch.contiguous_format))


def _index(anatomy: Anatomy) -> dict[int, list[tuple[str, str]]]:
    where: dict[int, list[tuple[str, str]]] = {}
    for path, module in anatomy.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                where.setdefault(id(parameter), []).append((path, name))
    return where
