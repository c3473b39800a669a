"""What goes around a place in a model: named adapters, stacked, routed, disabled, merged and switched, written once for every method.

An adapter is written around the base call: `adapter(base, x)`. LoRA is `base(x) + s * B(A x)`. It may also give the base other values for
its parameters (`values`), as BitFit and trained embeddings do. Which adapters are at work belongs to the batch (`Switch.using`), so that a
forward pass that is repeated in backward, or a second micro-batch in flight, sees its own set.

B batch, T length, O output width, I input width; "weight" is (O, I) here even where a module stores it transposed
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luthier.anatomy.switch import Route, Switch
from luthier.anatomy.table import transposed, values_of
from luthier.core.fan import Adapted, LowRankTerm, Projection
from luthier.core.text import TEXT

Values = dict[str, Tensor]  # parameters of one module by name, the weight as (O, I)


class Adapter(nn.Module):
    """What goes around a base call. `forward` is the method's formula; the other answers are for those that have one."""

    mergeable = False
    paired = False  # whether it hears of another place's calls, or tells one of its own: both places are called as often

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return base(x)

    def parts(self, base: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor] | None:
        """What it reads and what it adds to the base's output, for compositions that weigh it; None where it only looks on."""
        return base(x), self(base, x) - base(x)

    def values(self, current: Values) -> Values:
        """Parameters the base is to run with instead of its own."""
        return {}

    def merged(self, current: Values) -> Values:
        """Parameters with which the bare base does what base and adapter do together."""
        raise ValueError(f"{type(self).__name__} cannot be merged: its output is not linear in its input")

    def stored(self) -> Values:
        """What a file keeps of it, by name: tensors that reading fills in place."""
        return dict(self.named_parameters())

    def low_rank(self) -> LowRankTerm | None:
        """The term to add to the base's output, if that is all it does (and no dropout is on)."""
        return None


class Around(Adapted):
    """`base` with named adapters around it; those that the switch names are at work."""

    listed = False  # whether the model calls it with the tokens of all rows in one list

    def __init__(self, base: nn.Module, switch: Switch):
        super().__init__()
        self.base, self.adapters, self.switch = base, nn.ModuleDict(), switch
        self.train(base.training)

    def __getattr__(self, name: str) -> Any:  # model files read in_features, num_embeddings, eps ... of what they call
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    @property
    def active(self) -> tuple[str, ...]:
        return tuple(name for name in self.switch.now().names if name in self.adapters)

    @property
    def weight(self) -> Tensor:
        """The weight in force, as stored. Adapters that are more than another weight are not in it."""
        return self._in_force()["weight"]

    @property
    def bias(self) -> Tensor | None:
        return self._in_force().get("bias")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not args:  # a sublayer called as attn(hidden_states=x)
            args = (kwargs.pop(next(iter(kwargs))),)
        x, *rest = args
        route = self.switch.now()
        if route.rows is None:
            return self._run(route.groups[0], x, rest, kwargs)
        return self._mixed(route, x, rest, kwargs)

    def low_rank(self) -> tuple[Projection, list[LowRankTerm]] | None:
        route = self.switch.now()
        if route.rows is not None or not isinstance(self.base, Projection):
            return None
        terms = [self._adapter(name).low_rank() for name in route.groups[0] if name in self.adapters]
        found = [term for term in terms if term is not None]
        apart = len(found) < 2 or all(term.gain_O is None for term in found)  # a gain is on what stands below it, too
        return (self.base, found) if apart and len(found) == len(terms) else None

    def merged(self, names: tuple[str, ...]) -> Values:
        """The base's parameters, as stored, with these adapters folded in: only the changed ones."""
        current, changed = self.as_stored(values_of(self.base)), {}
        for name in self.switch.flat(names):
            if name in self.adapters:
                changed |= self._adapter(name).merged(current | changed)
        return self.as_stored(changed)

    def parameters_by_name(self) -> Values:
        """The base's own parameters, the weight turned to (O, I). A quantised weight is not among them."""
        return self.as_stored({name: value for name, value in self.base._parameters.items() if value is not None})

    def as_stored(self, values: Values) -> Values:
        return {name: value.T if name == "weight" and transposed(self.base) else value for name, value in values.items()}

    def _adapter(self, name: str) -> Adapter:
        adapter = self.adapters[name]
        assert isinstance(adapter, Adapter)
        return adapter

    def _in_force(self) -> dict[str, Any]:
        if all(self._adapter(name).mergeable for name in self.active):
            return values_of(self.base) | self.merged(self.active)
        return values_of(self.base)

    def _run(self, names: tuple[str, ...], x: Tensor, args: list, kwargs: dict[str, Any]) -> Any:
        adapters = [self._adapter(name) for name in names if name in self.adapters]
        own: Values = {}
        for adapter in adapters:
            own |= adapter.values(self.parameters_by_name() | own)
        base = twin(self.base, self.as_stored(own)) if own else self.base
        return stack(adapters, _Once(lambda z: base(z, *args, **kwargs)))(x)

    def _mixed(self, route: Route, x: Tensor, args: list, kwargs: dict[str, Any]) -> Tensor:
        shares = self.shares(route)
        if route.split and len(shares) == 1 and bool(shares[0][0].all()):
            return self._run(shares[0][1], x, args, kwargs)
        out = self._run((), x, args, kwargs)
        for mine, names in shares:
            mine = of_tokens(self._listed(mine, out), out.shape)
            out = torch.where(mine.view(*mine.shape, *[1] * (out.dim() - 2)), self._run(names, x, args, kwargs), out)
        return out

    def _listed(self, mine: Tensor, out: Any) -> Tensor:
        """For outputs (B T, O): each row's truth as often as it has tokens."""
        if not isinstance(out, Tensor):
            raise ValueError(
                f"{type(self.base).__name__} gives several tensors at once, so no row of a batch can take its own adapter there"
            )
        mine = mine.to(out.device)
        if self.listed and out.dim() == 2 and len(out) % len(mine) == 0 and mine.shape[1] in (1, len(out) // len(mine)):
            return mine.expand(-1, len(out) // len(mine)).reshape(-1, 1)
        return mine

    def shares(self, route: Route) -> list[tuple[Tensor, tuple[str, ...]]]:
        """What some row takes here: (which rows, adapters of this place)."""
        assert route.rows is not None
        shares: dict[tuple[tuple[str, ...], int], Tensor] = {}
        for i, group in enumerate(route.groups):
            names = tuple(name for name in group if name in self.adapters)
            if names:
                mine, key = route.rows == i, (names, i if any(self._adapter(name).paired for name in names) else -1)
                shares[key] = shares[key] | mine if key in shares else mine
        return [(mine, names) for (names, _), mine in shares.items() if bool(mine.any())]


def twin(module: nn.Module, values: Values) -> nn.Module:
    """The same module with other values for some of its own parameters, as they are stored.

    torch.func.functional_call puts them into the module itself for the time of a call, where a second thread finds them.
    """
    made = type(module).__new__(type(module))
    made.__dict__.update(module.__dict__, _parameters=module._parameters | values)
    if isinstance(made, nn.RNNBase):  # which keeps a list of them beside
        made.__dict__["_flat_weights"] = [made._parameters[name] for name in made._flat_weights_names]
    return made


def of_tokens(mine: Tensor, shape: Sequence[int]) -> Tensor:
    """Which tokens (or rows) of an output of this shape: one truth value for each row, document or token, (B, T) or (B, 1)."""
    mine = unpacked(mine, shape)
    if mine.dim() != 2 or len(shape) < 2 or mine.shape[0] != shape[0] or mine.shape[1] not in (1, shape[1]):
        raise ValueError(
            f"rows of shape {tuple(mine.shape)} do not fit an output of shape {tuple(shape)}: one per token or per row, and what one "
            "output gives to all rows (position tables, relative biases, experts) cannot be mixed"
        )
    return mine


def unpacked(mine: Tensor, shape: Sequence[int]) -> Tensor:
    """Of documents packed into one row, (documents, 1): (1, T). Others as they are."""
    text = TEXT.get()
    lengths = text.lengths if text is not None else None
    if lengths and len(lengths) == len(mine) > 1 and tuple(shape[:2]) == (1, sum(lengths)):
        return mine[:, 0].repeat_interleave(torch.tensor(lengths, device=mine.device))[None]
    return mine


class _Once:
    """A base call that is made once per distinct input, however many adapters ask for it."""

    def __init__(self, call: Callable[[Tensor], Any]):
        self.call = call
        self.known: list[tuple[Tensor, Any]] = []

    def __call__(self, x: Tensor) -> Any:
        for seen, out in self.known:
            if seen is x:
                return out
        out = self.call(x)
        self.known.append((x, out))
        return out


def once(base: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """The same call, made once per distinct input."""
    return _Once(base)


def stack(adapters: list[Adapter], base: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Each adapter around the one before it, the last outermost."""
    call = base
    for adapter in adapters:
        call = partial(adapter, call)
    return call


class OnRows(Adapter):
    """Adapters of the roles that share one fused projection, each on its own output rows."""

    def __init__(self) -> None:
        super().__init__()
        self.by_role = nn.ModuleDict()

    def add(self, role: str, adapter: Adapter, rows_O: Tensor) -> None:
        self.by_role[role] = adapter
        self.register_buffer(f"rows_{role}", rows_O, persistent=False)

    def part(self, role: str) -> Adapter | None:
        return self.by_role[role] if role in self.by_role else None  # type: ignore[return-value]  # noqa: SIM401  ModuleDict has no get

    @property
    def mergeable(self) -> bool:  # type: ignore[override]
        return all(part.mergeable for part in self.by_role.values())  # type: ignore[union-attr]

    @property
    def paired(self) -> bool:  # type: ignore[override]
        return any(part.paired for part in self.by_role.values())  # type: ignore[union-attr]

    def items(self) -> list[tuple[Tensor, Adapter]]:
        return [(self.get_buffer(f"rows_{role}"), part) for role, part in self.by_role.items()]  # type: ignore[misc]

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        out = base(x)
        for rows, part in self.items():
            mine = part(partial(_cut, base, rows), x)
            out = out.index_copy(-1, rows, mine.to(out.dtype))  # out of place: the base's output may be someone's saved tensor
        return out

    def values(self, current: Values) -> Values:
        return self._each(current, lambda part, values: part.values(values))

    def merged(self, current: Values) -> Values:
        return self._each(current, lambda part, values: part.merged(values))

    def _each(self, current: Values, ask: Callable[[Adapter, Values], Values]) -> Values:
        changed: Values = {}
        for rows, part in self.items():
            answer = ask(part, {name: value[rows] for name, value in (current | changed).items()})
            changed |= {name: (current | changed)[name].index_copy(0, rows, value) for name, value in answer.items()}
        return changed


def _cut(base: Callable[[Tensor], Tensor], rows: Tensor, x: Tensor) -> Tensor:
    return base(x)[..., rows]


class Own(Adapter):
    """Own values for some of the base's parameters; the base keeps its own. A parameter that modules share is one parameter here too."""

    mergeable = True

    def __init__(self, own: dict[str, nn.Parameter]):
        super().__init__()
        self.own = nn.ParameterDict(own)

    def values(self, current: Values) -> Values:
        return dict(self.own.items())

    def merged(self, current: Values) -> Values:
        return dict(self.own.items())
