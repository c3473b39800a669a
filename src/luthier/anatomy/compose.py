"""Several adapters as one. Stacking is the active set itself (around.py); split and parallel are routes of tokens and rows; an average
stands at every place of its members under a name of its own, as AdapterFusion does. Semantics after Pfeiffer et al. 2020, arXiv:2007.07779.

B batch, T length, N adapters, D output width
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.around import Adapter, Around, Values, once, stack


def together(adapters: Sequence[Adapter], base: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, list[tuple[int, Tensor, Tensor]]]:
    """The base's output, evaluated once; and of each adapter that adds something its number, what it reads and what it adds."""
    call = once(base)
    parts = [(i, found) for i, adapter in enumerate(adapters) if (found := adapter.parts(call, x)) is not None]
    return call(x), [(i, *found) for i, found in parts]


class Several(Adapter):
    """Adapters of one place as one; it can be merged where all of them can."""

    def __init__(self, adapters: Sequence[Adapter]):
        super().__init__()
        self.members = tuple(adapters)  # no children: they stand at the same place under their names

    @property
    def mergeable(self) -> bool:  # type: ignore[override]
        return all(member.mergeable for member in self.members)

    @property
    def paired(self) -> bool:  # type: ignore[override]
        return any(member.paired for member in self.members)


class Average(Several):
    """base(x) + sum_i w_i (a_i(x) - base(x)), and as much of the parameters that the members give the base."""

    def __init__(self, adapters: Sequence[Adapter], weights: Sequence[float]):
        super().__init__(adapters)
        self.weights = tuple(weights)

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        y, parts = together(self.members, base, x)
        for i, _, added in parts:
            y = y + self.weights[i] * added
        return y

    def parts(self, base: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor] | None:
        _, parts = together(self.members, base, x)
        return (parts[-1][1], torch.stack([self.weights[i] * added for i, _, added in parts]).sum(0)) if parts else None

    def values(self, current: Values) -> Values:
        return self._weigh(current, [member.values(current) for member in self.members])

    def merged(self, current: Values) -> Values:
        return self._weigh(current, [member.merged(current) for member in self.members])

    def _weigh(self, current: Values, found: list[Values]) -> Values:
        names = {name for values in found for name in values}
        each = list(zip(self.weights, found, strict=True))
        return {
            name: current[name] + sum(weight * (values[name] - current[name]) for weight, values in each if name in values)
            for name in names
        }


class Stacked(Several):
    """Each member around the one before it: a stack as one of several things that are weighed."""

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return stack(list(self.members), once(base))(x)

    def parts(self, base: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor] | None:
        if adds(self):
            return super().parts(base, x)
        for member in self.members:
            member.parts(base, x)
        return None

    def values(self, current: Values) -> Values:
        return self._one_after_the_other(current, lambda member, values: member.values(values))

    def merged(self, current: Values) -> Values:
        return self._one_after_the_other(current, lambda member, values: member.merged(values))

    def _one_after_the_other(self, current: Values, ask: Callable[[Adapter, Values], Values]) -> Values:
        changed: Values = {}
        for member in self.members:
            changed |= ask(member, current | changed)
        return changed


def adds(adapter: Adapter) -> bool:
    """Whether it has something that trains, itself or in what it is composed of; others only look on."""
    members = adapter.members if isinstance(adapter, Average | Stacked) else ()
    return any(True for _ in adapter.parameters()) or any(adds(member) for member in members)


def average(anatomy: Anatomy, weights: Mapping[str, float], name: str) -> None:
    """The weighted sum of adapters, as an adapter of its own."""
    place(anatomy, tuple(weights), name, lambda members: Average(list(members.values()), [weights[each] for each in members]))


def place(anatomy: Anatomy, names: Sequence[str], name: str, make: Callable[[dict[str, Adapter]], Adapter]) -> None:
    """At every place where some of these adapters stand, what `make` makes of those that do, under `name`."""
    unknown = [each for each in names if each not in anatomy.adapters]
    if unknown or name in anatomy.adapters or len(names) < 1:
        raise ValueError(f"adapters to compose are attached first, and the composition has a new name: {', '.join([*unknown, name])}")
    for _, around in anatomy.arounds():
        members = at(around, names)
        if members:
            around.adapters[name] = make(members).train(around.base.training)


def at(around: Around, names: Sequence[str]) -> dict[str, Adapter]:
    return {each: adapter for each, adapter in around.adapters.items() if each in names and isinstance(adapter, Adapter)}


def split(lengths: Sequence[int], rows: int = 1) -> Tensor:
    """(rows, T) routes for `using(*names, rows=...)`: the first lengths[0] tokens take the first name, the next the second, and so on."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(list(lengths)))[None].expand(rows, -1)


def parallel(ids_BT: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The batch once for each of `count` names, and its routes: rows 0..B-1 take the first name, B..2B-1 the second, and so on."""
    return ids_BT.repeat(count, 1), torch.arange(count, device=ids_BT.device).repeat_interleave(len(ids_BT))[:, None]
