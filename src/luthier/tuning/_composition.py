"""What may stand where a tuning method stands: a list stacks; {stack|fuse|average|parallel|split: [...]} nest, in any depth.

After Pfeiffer et al. 2020, arXiv:2007.07779. Each class is one way to put methods together: the key that names it holds the members, and
the other fields stand beside it. Read without importing (schema.py), so this file imports no torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

from luthier.config import build, build_plug_in
from luthier.lookup import Shelf

Members = Annotated[tuple[Any, ...], Shelf("tuning", many=True, nest="tuning/_composition.py")]


@dataclass(frozen=True)
class Stack:
    """All at work at once, each around the one before it."""

    stack: Members

    def __post_init__(self) -> None:
        _check(self, 1)


@dataclass(frozen=True)
class Fuse:
    """Attention over what the members add at each place (AdapterFusion), trained together with them."""

    fuse: Members
    penalty: float = 0.01  # weight of ||I - V||^2
    dropout: float = 0.0  # on the scores

    def __post_init__(self) -> None:
        _check(self, 2)


@dataclass(frozen=True)
class Average:
    """The weighted sum of what the members add, or of the values that they give the model's parameters."""

    average: Members
    weights: tuple[float, ...] = ()  # one for each member; all alike when left out

    def __post_init__(self) -> None:
        _check(self, 2)
        if self.weights and len(self.weights) != len(self.average):
            raise ValueError(f"average has {len(self.average)} members and {len(self.weights)} weights; give one weight for each")

    @property
    def shares(self) -> tuple[float, ...]:
        return self.weights or (1 / len(self.average),) * len(self.average)


@dataclass(frozen=True)
class Parallel:
    """Each member reads every text for itself: it trains as if alone, and has an answer of its own. A row may name the one that reads it."""

    parallel: Members
    names: tuple[str, ...] = ()  # what rows call the members, in a column `adapter`; by their kinds (lora, lora2) when left out

    def __post_init__(self) -> None:
        _check(self, 2)
        if self.names and (len(self.names) != len(self.parallel) or len({*self.names}) < len(self.names)):
            raise ValueError(f"parallel has {len(self.parallel)} members and the names {', '.join(self.names)}; give each one of its own")
        if wrong := [name for name in self.names if not name.isidentifier()]:
            raise ValueError(f"a member of parallel cannot be called {wrong[0]!r}: letters, digits and _")


@dataclass(frozen=True)
class Split:
    """The first tokens of every text take the first member, the next ones the second, and so on."""

    split: Members
    lengths: tuple[int, ...]  # tokens for each member, as the model counts places; without the last: it takes the rest of the text

    def __post_init__(self) -> None:
        _check(self, 2)
        members, lengths = len(self.split), len(self.lengths)
        if lengths not in (members - 1, members) or min(self.lengths) < 1:
            told = f"{', '.join(map(str, self.lengths)) or 'none'}"
            raise ValueError(f"split has {members} members and the lengths {told}: one of 1 at least for each, or all but the last one's")


Node = Stack | Fuse | Average | Parallel | Split
NODES: dict[str, type[Node]] = {cls.__name__.lower(): cls for cls in (Stack, Fuse, Average, Parallel, Split)}


def tree(value: Any) -> Any:
    """What a user writes, as methods and compositions of methods; ValueError for what does not fit."""
    if isinstance(value, list | tuple):
        return tree(value[0]) if len(value) == 1 else Stack(tuple(map(tree, value)))
    if isinstance(value, str) or (isinstance(value, Mapping) and "kind" in value):
        return build_plug_in("tuning", value)
    if not isinstance(value, Mapping):
        return value
    name = next((key for key in value if key in NODES), "")
    if not name:
        raise ValueError(
            f"a section of tuning needs the key 'kind' or one of {', '.join(NODES)}, got {', '.join(map(str, value)) or 'nothing'}"
        )
    given = value[name] if isinstance(value[name], list | tuple) else [value[name]]
    return build(NODES[name], {**value, name: tuple(map(tree, given))})


def plain(made: Any) -> dict[str, Any]:
    """The sections a method or a composition is made of, with every default filled in; `tree` reads them back."""
    if not isinstance(made, Node):
        return {"kind": type(made).__module__.rpartition(".")[2], **asdict(made)}
    rest = {field.name: getattr(made, field.name) for field in fields(made)}
    return rest | {name_of(made): [plain(member) for member in members_of(made)]}


def name_of(node: Node) -> str:
    return type(node).__name__.lower()


def members_of(node: Node) -> tuple[Any, ...]:
    return getattr(node, name_of(node))


def _check(node: Node, least: int) -> None:
    if len(members_of(node)) < least:
        raise ValueError(f"{name_of(node)} needs {least} members at least, not {len(members_of(node))}")
