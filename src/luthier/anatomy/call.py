"""The attention call as a place: keys and values that stand before all others, for our models and for transformers' alike.

Ours call `attend` of each attention. A transformers model reaches its attention through a registry of functions; one more name there leads
to the same place, so nothing goes through its cache, and padding, recomputation and kernels are what they were. Positions begin behind the
prefix, as where keys of earlier tokens are kept (Li & Liang 2021, arXiv:2101.00190, section 4).

B batch, T queries, S keys, H query heads, G key-value heads, P keys of a prefix, K head width
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.around import Adapter, Around, Values, unpacked
from luthier.anatomy.merge import probe
from luthier.anatomy.site import Site, resolve
from luthier.anatomy.switch import Route
from luthier.core.attention import Prefix

NAME = "luthier_"  # before the name of the implementation that a transformers model has been set to
KINDS = ("sdpa", "eager")


class Leading(Adapter, ABC):
    """An adapter of an attention call."""

    @abstractmethod
    def columns(self) -> Prefix:
        """Keys and values, each (G, P, K)."""

    def gate(self) -> Tensor | None:
        """(B, T, 1): what each query's keys and values here are multiplied by."""
        return None


class Shift(Adapter):
    """An adapter of a module that positions go into: they begin at `by`."""

    def __init__(self, by: int):
        super().__init__()
        self.by = by

    def forward(self, base: Any, x: Tensor) -> Any:
        try:
            return base(x)
        except IndexError:
            raise ValueError(
                f"with {self.by} positions taken by the prefix the text is longer than the model's positions; shorten either"
            ) from None

    def values(self, current: Values) -> Values:
        return {"weight": current["weight"][self.by :]}


class CallAround(Around):
    """An attention call with prefixes before its keys. In a mixed batch each query sees the prefix of its own row alone."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        route = self.switch.now()
        if route.rows is None:
            return self._led(route.groups[0], args, kwargs)
        out = self._led((), args, kwargs)
        for mine, names in self.shares(route):
            out = self.base.choose(mine, self._led(names, args, kwargs), out)  # type: ignore[operator]
        return out

    def _led(self, names: tuple[str, ...], args: tuple, kwargs: dict[str, Any]) -> Any:
        leads = [self.adapters[name] for name in names if name in self.adapters]
        if not leads:
            return self.base(*args, **kwargs)
        columns, gates = [lead.columns() for lead in leads], [lead.gate() for lead in leads]  # type: ignore[operator]
        if any(gate is not None for gate in gates):
            return self.base.gated(columns, gates, *args, **kwargs)  # type: ignore[operator]
        keys, values = ([pair[i] for pair in columns] for i in (0, 1))
        return self.base(*args, **kwargs, prefix=(torch.cat(keys, 1), torch.cat(values, 1)))


class PositionAround(Around):
    """A module that positions go into, of a stack whose attention has prefixes."""

    def _run(self, names: tuple[str, ...], x: Any, args: list, kwargs: dict[str, Any]) -> Any:
        if isinstance(self.base, nn.Embedding):
            return super()._run(names, x, args, kwargs)
        by = sum(self.adapters[name].by for name in names if name in self.adapters)  # type: ignore[misc]
        (x, *args), kwargs = [_later(value, by) for value in (x, *args)], {key: _later(value, by) for key, value in kwargs.items()}
        return self.base(x, *args, **kwargs)

    def _mixed(self, route: Route, x: Any, args: list, kwargs: dict[str, Any]) -> Any:
        out = self._run((), x, args, kwargs)
        for mine, names in self.shares(route):
            out = _choose(mine, self._run(names, x, args, kwargs), out)
        return out


def _later(value: Any, by: int) -> Any:
    return value + by if isinstance(value, Tensor) and value.dtype == torch.int64 else value


def _choose(mine: Tensor, new: Any, old: Any) -> Any:
    """Where mine (B, T or 1), the new value; old (1 or B, T, ...). Of tuples, each tensor."""
    if isinstance(old, tuple):
        parts = [_choose(mine, a, b) for a, b in zip(new, old, strict=True)]
        return type(old)(*parts) if hasattr(old, "_fields") else tuple(parts)
    if not isinstance(old, Tensor):
        return old
    mine = unpacked(mine, old.shape)
    if old.dim() > 2 and (old.shape[0] not in (1, len(mine)) or mine.shape[1] not in (1, old.shape[1])):
        raise ValueError(f"rows of shape {tuple(mine.shape)} do not fit an output of shape {tuple(old.shape)}: one per token or per row")
    return torch.where(mine.to(old.device).view(*mine.shape, *[1] * (old.dim() - 2)), new, old)


class Widened:
    """Queries, keys and values under which each query meets keys g P_k and values g P_v of its own gate g, whatever the kernel.

    Each gated prefix has room of its own in every head: q' = (q, g q), k' = (k, 0), P_k' = (0, P_k), so that q' P_k' = g q P_k; and of the
    output (o, o') that values (v, 0) and (0, P_v) make, o + g o' is what is left.
    """

    def __init__(self, columns: list[Prefix], gates: list[Tensor | None], q: Tensor, k: Tensor, v: Tensor):
        self.gates = [gate for gate in gates if gate is not None]
        rooms, self.value_width = len(self.gates), v.shape[-1]
        self.q = torch.cat([q, *(gate[:, None] * q for gate in self.gates)], -1)
        self.k, self.v = (F.pad(x, (0, rooms * x.shape[-1])) for x in (k, v))
        room, keys, values = 0, [], []
        for (key, value), gate in zip(columns, gates, strict=True):
            room += gate is not None
            mine = room if gate is not None else 0
            keys.append(F.pad(key, (mine * key.shape[-1], (rooms - mine) * key.shape[-1])))
            values.append(F.pad(value, (mine * value.shape[-1], (rooms - mine) * value.shape[-1])))
        self.prefix: Prefix = torch.cat(keys, 1), torch.cat(values, 1)

    def closed(self, out_BTHK: Tensor) -> Tensor:
        first, *rest = out_BTHK.split(self.value_width, -1)
        return first + sum(gate[:, :, None] * part for gate, part in zip(self.gates, rest, strict=True))


class Ours(nn.Module):
    """The attention call of our models."""

    def __init__(self, attend: Any):
        super().__init__()
        self.attend = attend

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.attend(*args, **kwargs)

    def gated(
        self, columns: list[Prefix], gates: list[Tensor | None], q: Tensor, k: Tensor, v: Tensor, mask: Any, bias: Any = None,
        scale: float | None = None, *args: Any,
    ) -> Tensor:  # fmt: skip
        wide = Widened(columns, gates, q, k, v)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return wide.closed(self.attend(wide.q, wide.k, wide.v, mask, bias, scale, *args, prefix=wide.prefix).transpose(1, 2)).transpose(
            1, 2
        )

    def choose(self, mine: Tensor, new: Tensor, old: Tensor) -> Tensor:
        return _choose(mine, new.transpose(1, 2), old.transpose(1, 2)).transpose(1, 2)


class Theirs(nn.Module):
    """The attention call of a transformers model: whatever function it is set to, with the prefix among its keys and in its mask."""

    def forward(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *args: Any, prefix: Prefix | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        kind = module.config._attn_implementation.removeprefix(NAME)
        function = _function(kind, module)
        if prefix is None:
            return function(module, q, k, v, mask, *args, **kwargs)
        if kind == "sdpa":
            mask, kwargs["is_causal"] = _explicit(module, q, k, mask, kwargs.get("is_causal")), False
        before = prefix[0].shape[1]
        k, v = (torch.cat([lead.to(x.dtype).expand(x.shape[0], -1, -1, -1), x], 2) for lead, x in zip(prefix, (k, v), strict=True))
        if mask is not None:
            mask = F.pad(mask, (before, 0), value=mask.dtype == torch.bool)
        if kwargs.get("position_bias") is not None:
            kwargs["position_bias"] = F.pad(kwargs["position_bias"], (before, 0))
        out, weights = function(module, q, k, v, mask, *args, **kwargs)
        return out, None if weights is None else weights[..., before:]

    def gated(
        self, columns: list[Prefix], gates: list[Tensor | None], module: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        wide = Widened(columns, gates, q, k, v)
        kwargs["scaling"] = q.shape[-1] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
        out, weights = self(module, wide.q, wide.k, wide.v, *args, prefix=wide.prefix, **kwargs)
        return wide.closed(out), weights

    def choose(self, mine: Tensor, new: tuple, old: tuple) -> tuple:
        return _choose(mine, new[0], old[0]), old[1]


def _explicit(module: Any, q: Tensor, k: Tensor, mask: Tensor | None, causal: bool | None) -> Tensor | None:
    """The mask that torch's causal flag stands for, which counts from the first key."""
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if mask is not None or not causal or q.shape[2] == 1:
        return mask
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()[None, None]


def _function(kind: str, module: Any) -> Any:
    """The function a transformers model would call: that of the registry, or of its own file."""
    if kind == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[kind]


def _through_the_place(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *args: Any, **kwargs: Any) -> Any:
    """What stands in the registry. Attentions without a place of their own are left as they are."""
    if "attend" in module._modules:
        return module.attend(module, q, k, v, mask, *args, **kwargs)  # type: ignore[operator]
    return _function(module.config._attn_implementation.removeprefix(NAME), module)(module, q, k, v, mask, *args, **kwargs)  # type: ignore[union-attr]


def _enter(module: Any, args: tuple) -> None:
    """Before each attention: its call leads through the registry's name, also after the model has been set to another kind."""
    kind = module.config._attn_implementation.removeprefix(NAME)
    if kind not in KINDS:
        raise ValueError(
            f"a prefix stands before the keys of {' and '.join(KINDS)} attention, not of {kind!r}: use set_attn_implementation"
        )
    module.config._attn_implementation = NAME + kind


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for kind in KINDS:
        ALL_ATTENTION_FUNCTIONS.register(NAME + kind, _through_the_place)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME + kind, ALL_MASK_ATTENTION_FUNCTIONS[kind])


def call_of(anatomy: Anatomy, q: Site) -> Site:
    """The attention call of the attention that has this q."""
    path = q.path.rpartition(".")[0]
    attention: Any = resolve(anatomy.root, path)
    if "attend" not in attention._modules:
        if anatomy.kind:
            _register()
            attention.attend = Theirs()
            if "config" in vars(attention):  # without one it cannot ask the registry
                attention.register_forward_pre_hook(_enter)
        else:
            attention.attend = Ours(attention.attend)
    return Site("", q.layer, q.stack, f"{path}.attend", anatomy.root, anatomy.net, anatomy.switch, around_type=CallAround)


def positions_of(anatomy: Anatomy, stack: str) -> list[Site]:
    """The modules that turn positions into vectors or angles for one stack."""
    stems = [f"{each.path.rpartition('.')[0]}." if "." in each.path else "" for each in anatomy.stacks.values()]
    mine = stems[list(anatomy.stacks).index(stack)]
    found = []
    for path, module in anatomy.modules():
        within = max((stem for stem in stems if path.startswith(stem)), key=len, default=mine)
        if within == mine and _takes_positions(path, module):
            found.append(Site("", -1, stack, path, anatomy.root, anatomy.net, anatomy.switch, around_type=PositionAround))
    return found


def _takes_positions(path: str, module: nn.Module) -> bool:
    named = path.rpartition(".")[2] in ("position", "wpe", "embed_positions", "position_embeddings")
    return named or type(module).__name__ == "Rotary" or type(module).__name__.endswith("RotaryEmbedding")


@torch.no_grad()
def heard(anatomy: Anatomy, calls: list[Site], ids: Tensor) -> dict[str, Prefix]:
    """The keys and values (G, P, K) that each call is given when the base model reads these ids; a call that is not made is left out."""
    found: dict[str, Prefix] = {}
    with _listening(calls, found), anatomy.using():
        probe(anatomy, ids)
    return found


@contextmanager
def _listening(calls: list[Site], found: dict[str, Prefix]) -> Iterator[None]:
    def hook(path: str, first: int) -> Any:
        return lambda _, args: found.setdefault(path, (args[first][0].clone(), args[first + 1][0].clone())) and None

    handles = [site.module.register_forward_pre_hook(hook(site.path, 1 if isinstance(site.module, Ours) else 2)) for site in calls]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
