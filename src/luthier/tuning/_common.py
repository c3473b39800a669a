"""Fields that the weight methods share: parts trained whole beside the method, task heads, and the vectors of added tokens."""

from collections.abc import Iterable

from torch import nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.site import Site
from luthier.tuning._own import Place, everything, inside, train_own, train_rows


def train_beside(anatomy: Anatomy, name: str, also_train: tuple[str, ...], places: Iterable[Place] = ()) -> dict[str, nn.Parameter]:
    """Whatever a method trains, these train with it: `also_train` (embed, head, norm, or roles), every task head, added tokens.

    places: existing parameters that the method itself trains.
    """
    sites = [*anatomy.find(*also_train), *task_sites(anatomy)]
    named = train_own(anatomy, name, [*places, *everything(sites)])
    if anatomy.grown and not {"embed", "head"} & set(also_train):
        named |= train_rows(anatomy, name, list(anatomy.grown))
    return named


def check_room(anatomy: Anatomy, length: int) -> None:
    """Refuse so many virtual tokens, or columns of a prefix, where they leave no position for a text."""
    if 0 < anatomy.positions <= length:
        raise ValueError(f"length={length} leaves no room for a text: the model has {anatomy.positions} positions; take a smaller length")


def task_sites(anatomy: Anatomy) -> list[Site]:
    """The places of the heads that stand on the model for a task of its own."""
    return [site for head in anatomy.task_heads().values() for site in inside(anatomy, head)]


def projections(anatomy: Anatomy, without: Iterable[str] = ()) -> list[str]:
    """The roles of every projection that blocks of this model have, but for those named."""
    there = {role.rpartition(".")[2] for role in anatomy.roles}
    return [role for role in ("q", "k", "v", "o", "up", "gate", "down") if role in there - set(without)]
