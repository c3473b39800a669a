"""Which adapters of a model are at work: names in order, of compositions too, for all rows of a batch or one for each.

The set belongs to the batch (`Switch.using`), so that a forward pass that is repeated in backward, or a second micro-batch in flight, sees
its own. B batch, T length
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.core.text import TEXT


@dataclass(frozen=True)
class Route:
    """Adapters in order, the last outermost; with rows (B, T) or (B, 1), each token takes one of the groups: groups[rows], -1 the base."""

    groups: tuple[tuple[str, ...], ...]
    rows: Tensor | None = None
    split: bool = False  # the rows are the places of a text, whatever the shape of an output

    @property
    def names(self) -> tuple[str, ...]:
        """All of them; without rows there is one group."""
        return tuple(dict.fromkeys(name for group in self.groups for name in group))


@dataclass(frozen=True)
class Named:
    """What the name of a composition stands for: adapters in order; or, by the place of a token in its text, one of several such groups.

    ends: before which place each group ends, the last one's left out. passes: names of groups that each run for themselves.
    """

    groups: tuple[tuple[str, ...], ...] = ()
    ends: tuple[int, ...] = ()
    total: int | None = None  # how long a text is; any length when left out
    passes: tuple[str, ...] = ()
    all: tuple[str, ...] = ()  # every name that goes with it


class Switch:
    """Which adapters of one model are at work: `default`, unless the batch at hand brings its own set. named: compositions."""

    def __init__(self) -> None:
        self.default: tuple[str, ...] = ()
        self.named: dict[str, Named] = {}

    def chosen(self) -> tuple[tuple[str, ...], Tensor | None]:
        """The names at work as they were given, compositions by their own name, and the rows."""
        for switch, names, rows in reversed(_batch.get()):
            if switch is self:
                return names, rows
        return self.default, None

    def now(self) -> Route:
        names, rows = self.chosen()
        if not self.named:
            return Route((names,) if rows is None else tuple((name,) for name in names), rows)
        if rows is not None:
            return Route(tuple(self._whole(name) for name in names), rows)
        found = [self.named.get(name, Named(((name,),))) for name in names]
        several = [each for each in found if len(each.groups) != 1]
        if not several:
            return Route((self.flat(names),))
        if len(several) > 1 or several[0].passes:
            raise ValueError(_told(names, several[0]))
        spread = [
            tuple(name for each in found for name in each.groups[i if each is several[0] else 0]) for i in range(len(several[0].groups))
        ]
        return Route(tuple(spread), _places(several[0]), split=True)

    def flat(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Adapters in order, those of a composition in its place."""
        return tuple(dict.fromkeys(part for name in names for part in self._whole(name)))

    def every(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Adapters in order, those of all parts of a split."""
        found = [self.named.get(name, Named(((name,),))) for name in names]
        if several := [each for each in found if each.passes]:
            raise ValueError(_told(names, several[0]))
        return tuple(dict.fromkeys(part for each in found for group in each.groups for part in group))

    def _whole(self, name: str) -> tuple[str, ...]:
        named = self.named.get(name, Named(((name,),)))
        if len(named.groups) != 1:
            raise ValueError(_told((name,), named))
        return named.groups[0]

    @contextmanager
    def using(self, names: tuple[str, ...], rows: Tensor | None = None) -> Iterator[None]:
        token = _batch.set((*_batch.get(), (self, names, rows)))
        try:
            yield
        finally:
            _batch.reset(token)


_batch: ContextVar[tuple[tuple[Switch, tuple[str, ...], Tensor | None], ...]] = ContextVar("batch", default=())


def _told(names: tuple[str, ...], named: Named) -> str:
    if named.passes:
        return f"{', '.join(names)} is parallel: each of its members runs for itself; put one of them to work: {', '.join(named.passes)}"
    return (
        f"{', '.join(names)}: a split gives its members parts of one text, so it does not go with rows, with a merge or with a second split"
    )


def _places(named: Named) -> Tensor:
    """(B, T): which group each token of the text at hand takes."""
    text = TEXT.get()
    assert text is not None, "a text has entered"
    longest = int(text.place_BT.max()) + 1
    if named.total is not None and longest != named.total:
        raise ValueError(
            f"a split into {named.total} tokens in all does not fit a text of {longest}; leave the last length out for the rest"
        )
    return torch.bucketize(text.place_BT.contiguous(), torch.tensor(named.ends, device=text.place_BT.device), right=True)
