"""A place in a model that an adapter can go around, and the walk over a model as if no adapters were there.

O output width, I input width
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from luthier.anatomy.around import Adapter, Around, OnRows, Switch, Values
from luthier.anatomy.table import transposed, values_of

LISTED = ("opt",)  # transformers models whose feed-forward takes the tokens of all rows as one list


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of everything in the base model, as if no adapters were there."""
    seen: set[int] = set()

    def visit(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        module = bare(module)
        if id(module) in seen:
            return
        seen.add(id(module))
        yield path, module
        for name, child in module.named_children():
            yield from visit(child, f"{path}.{name}" if path else name)

    return visit(module, path)


def bare(module: nn.Module) -> nn.Module:
    return module.base if isinstance(module, Around) else module


def resolve(root: nn.Module, path: str) -> nn.Module:
    """The module at a path of the base model, Around included if there is one. AttributeError where there is none."""
    module = root
    for name in path.split(".") if path else ():
        module = bare(module).get_submodule(name)
    return module


@dataclass(frozen=True, eq=False)
class Site:
    """One place a tuning method can go around: a role of one block, the embedding, the head, a norm, or any module by its path."""

    role: str
    layer: int  # -1 outside the blocks
    stack: str
    path: str
    root: nn.Module = field(repr=False)
    net: nn.Module = field(repr=False)  # everything; a foreign net holds its root and heads beside it
    switch: Switch = field(repr=False)
    rows: Tensor | None = None  # the output rows of a fused projection that are this role's
    around_type: type[Around] = Around  # what holds adapters here

    @property
    def address(self) -> str:
        """stack.layer.role, or role; for a place without a role, its path. The same for our models and for others."""
        if not self.role:
            return self.path
        return f"{self.stack}.{self.layer}.{self.role}" if self.layer >= 0 else self.role

    @property
    def module(self) -> nn.Module:
        """The base module, without what is around it."""
        return bare(resolve(self.root, self.path))

    @property
    def parameters(self) -> Values:
        """The base's own parameters for this role: weight (O, I), rows cut."""
        values: Values = values_of(self.module)
        if transposed(self.module):
            values["weight"] = values["weight"].T
        return values if self.rows is None else {name: value[self.rows] for name, value in values.items()}

    @property
    def weight(self) -> Tensor:
        """The frozen weight of this role, (O, I)."""
        return self.parameters["weight"]

    @property
    def bias(self) -> Tensor | None:
        return self.parameters.get("bias")

    @property
    def around(self) -> Around | None:
        module = resolve(self.root, self.path)
        return module if isinstance(module, Around) else None

    def adapter(self, name: str) -> Adapter | None:
        """The adapter of that name here."""
        if self.around is None or name not in self.around.adapters:
            return None
        found = self.around.adapters[name]
        if isinstance(found, OnRows):
            return found.part(self.role)
        return found  # type: ignore[return-value]

    def wrap(self, name: str, adapter: Adapter) -> None:
        """Put an adapter around this place, under a name."""
        if self.adapter(name) is not None:
            raise ValueError(
                f"{self.address} has an adapter called {name!r} already: a place is trained in one way; leave it out of one of them"
            )
        around = self._wrapped()
        adapter.train(around.base.training)
        if self.rows is None:
            around.adapters[name] = adapter
            return
        if name not in around.adapters:
            around.adapters[name] = OnRows().train(around.base.training)
        shared = around.adapters[name]
        assert isinstance(shared, OnRows), f"{self.path} is fused: one adapter per role"
        shared.add(self.role, adapter, self.rows.to(self.weight.device))

    def replace(self, module: nn.Module) -> None:
        """Put another base here (a quantised one), under the adapters there may be."""
        if self.around is not None:
            self.around.base = module
        else:
            self._put(module)

    def unwrap(self, name: str) -> None:
        """Take the adapter of that name away, and Around with the last one."""
        around = self.around
        if around is None or name not in around.adapters:
            return
        del around.adapters[name]
        if not around.adapters:
            self._put(around.base)

    def _wrapped(self) -> Around:
        if self.around is None or not isinstance(self.around, self.around_type):
            others = {} if self.around is None else dict(self.around.adapters.items())
            around = self.around_type(self.module, self.switch)
            around.adapters.update(others)
            around.listed = getattr(getattr(self.root, "config", None), "model_type", "") in LISTED
            self._put(around)
        assert self.around is not None
        return self.around

    def _put(self, module: nn.Module) -> None:
        """In place of what is there, in every parent that holds it: a head may stand in two places."""
        old = resolve(self.root, self.path)
        owners = [bare(resolve(self.root, self.path.rpartition(".")[0]))] if self.layer >= 0 else list(self.net.modules())
        held = [(owner, name) for owner in owners for name, child in owner._modules.items() if child is old]
        for owner, name in held:
            owner._modules[name] = module
