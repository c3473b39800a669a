"""Virtual tokens as a place: rows beside an embedding, and texts that have them before they are read, for our models and transformers'.

A stack's input gets the ids (core/virtual.py), its embedding their vectors, and what it returns is of the caller's tokens again, so that
heads, labels and losses know nothing of it. An encoder's virtual tokens stay among what its decoder looks at.
"""

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.around import Adapter, Around, Switch
from luthier.anatomy.site import Site, bare, resolve
from luthier.core.virtual import FIRST, Inserted, insert

ROOM = 1 << 16  # ids of one adapter


class Rows(Adapter, ABC):
    """Vectors of virtual tokens: `table` gives all of them, (P, D), for the ids from `first` on.

    stack: before whose texts they stand; "" for tokens that texts bring themselves, as the template says where there is one.
    """

    stack = ""
    first = FIRST
    template = ""

    @abstractmethod
    def table(self) -> Tensor:
        """The vectors, (P, D)."""

    @abstractmethod
    def count(self) -> int:
        """How many there are, P."""


class RowsAround(Around):
    """An embedding with rows for virtual tokens. Which rows is in the ids, so they need no route."""

    def forward(self, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        virtual = ids >= FIRST
        out = super().forward(ids.masked_fill(virtual, 0), *args, **kwargs)
        for adapter in self.adapters.values() if bool(virtual.any()) else ():
            if isinstance(adapter, Rows):
                place = ids - adapter.first
                mine = (place >= 0) & (place < adapter.count())
                rows = adapter.table()[place.clamp(0, adapter.count() - 1)]
                out = torch.where(mine[..., None], rows.to(out.dtype), out)
        return out


@dataclass
class Standing:
    """Which virtual tokens stand before the texts of one stack, of the adapters now at work."""

    root: nn.Module
    path: str
    stack: str
    switch: Switch

    def __call__(self, texts: int) -> Tensor | None:
        around = resolve(self.root, self.path)
        if not isinstance(around, RowsAround):
            return None
        names, rows = self.switch.chosen()
        if rows is None:
            chosen = self._ids(around, self.switch.every(names))
            return chosen[None].expand(texts, -1) if len(chosen) else None
        ids = [self._ids(around, self.switch.flat((name,))) for name in names]
        if not any(map(len, ids)):
            return None
        if rows.shape != (texts, 1):
            raise ValueError(
                f"virtual tokens stand before whole texts: rows of shape {tuple(rows.shape)} for {texts} texts; "
                "give one adapter a row or a packed document, (texts, 1)"
            )
        each = [ids[row] if row >= 0 else ids[0][:0] for row in rows[:, 0].tolist()]
        return pad_sequence(each, batch_first=True, padding_value=-1)

    def _ids(self, around: RowsAround, names: tuple[str, ...]) -> Tensor:
        here = [around.adapters[name] for name in names if name in around.adapters]
        mine = [adapter for adapter in here if isinstance(adapter, Rows) and adapter.stack == self.stack]
        parts = [torch.arange(adapter.first, adapter.first + adapter.count()) for adapter in mine]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


class Border:
    """A transformers stack's input and output, as hooks: virtual tokens go in, the caller's tokens come out."""

    def __init__(self, standing: Standing, memory: Standing | None, keeps: bool):
        self.standing, self.memory, self.keeps = standing, memory, keeps
        self.inserted: Inserted | None = None
        self.after = 0  # real tokens of a text that stand before them

    def enter(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        self.inserted = None
        given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        ids, past = given.get("input_ids"), given.get("past_key_values")
        if self.memory is not None and given.get("encoder_hidden_states") is not None:
            given["encoder_attention_mask"] = self._seen(given["encoder_hidden_states"], given.get("encoder_attention_mask"))
        if ids is None:
            if self.standing(1) is not None:
                raise ValueError("virtual tokens stand before ids: give input_ids, not vectors")
            return (), given
        mask, start = given.get("attention_mask"), 0 if past is None else past.get_seq_length()
        if mask is not None and mask.dim() != 2:
            raise ValueError("virtual tokens stand before rows with plain padding masks (rows, tokens), not under other masks")
        seen = insert(ids if start == 0 else torch.zeros_like(mask) if mask is not None else ids, mask, self.standing, self.after)
        if seen is None:
            return (), given
        given["attention_mask"] = seen.mask if mask is not None or start == 0 else None
        place = given.get("position_ids")
        if start and seen.mask is not None and bool((seen.virtual & ~seen.mask.bool()).any()):
            raise ValueError("rows with prompts of unlike lengths leave room in transformers' cache: generate with use_cache=False")
        if start:
            given["position_ids"] = None if place is None else place + seen.virtual.shape[1] - seen.kept.shape[1]
            return (), given
        self.inserted = seen
        given["input_ids"] = seen.ids
        if given.get("token_type_ids") is not None:
            given["token_type_ids"] = seen.spread(given["token_type_ids"], 0)
        if place is not None:
            count = seen.virtual.cumsum(1)
            first = place.expand(len(ids), -1).gather(1, (seen.virtual.long().argmax(1, keepdim=True)).clamp(max=ids.shape[1] - 1))
            given["position_ids"] = torch.where(seen.virtual, first + count - 1, seen.spread(place, 0) + count)
        return (), given

    def _seen(self, states: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask of an encoder's text, with its virtual tokens."""
        assert self.memory is not None
        chosen = self.memory(len(states))
        if chosen is None or (mask is not None and mask.shape[1] == states.shape[1]):
            return mask
        like = states.new_zeros(len(states), states.shape[1] - chosen.shape[1], dtype=torch.long)
        found = insert(like, mask, lambda _: chosen)
        return None if found is None or found.mask is None else found.mask.long()

    def leave(self, module: Any, args: tuple, output: Any) -> Any:
        seen, self.inserted = self.inserted, None
        if seen is None or self.keeps:
            return output
        if isinstance(output, tuple):
            return (seen.taken(output[0]), *output[1:])
        output["last_hidden_state"] = seen.taken(output["last_hidden_state"])
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(seen.taken(x) for x in output["hidden_states"])
        return output


def rows_at(anatomy: Anatomy, stack: str) -> Site:
    """The embedding of a stack, which from now on has its texts read with the virtual tokens at work before them."""
    if anatomy.kind:
        return _theirs(anatomy, stack)
    stem = anatomy.stacks[stack].path.rpartition(".")[0]
    net: Any = resolve(anatomy.root, stem)
    if getattr(net, "embed", None) is None or not hasattr(net, "virtual"):
        raise ValueError(f"{type(net).__name__} does not read its texts through one embedding, so no virtual token can stand in them")
    if getattr(net, "placed", False):
        raise ValueError(
            f"{type(net).__name__} finds the places of its tokens by itself, so no virtual token can stand before them; take prefix or lora"
        )
    site = _site(anatomy, stack, f"{stem}.embed.token" if stem else "embed.token")
    net.virtual = Standing(anatomy.root, site.path, stack, anatomy.switch)
    return site


def stand(anatomy: Anatomy, stack: str, after: int) -> None:
    """Where the virtual tokens of a stack stand: behind so many tokens of every text. 0: before it."""
    if anatomy.kind:
        hooks = (getattr(hook, "__self__", None) for hook in reader(anatomy, stack)._forward_pre_hooks.values())
        next(border for border in hooks if isinstance(border, Border)).after = after
    else:
        net: Any = resolve(anatomy.root, anatomy.stacks[stack].path.rpartition(".")[0])
        net.virtual_after = after


def _site(anatomy: Anatomy, stack: str, path: str) -> Site:
    return Site("embed", -1, stack, path, anatomy.root, anatomy.net, anatomy.switch, around_type=RowsAround)


def _theirs(anatomy: Anatomy, stack: str) -> Site:
    module = reader(anatomy, stack)
    site = _site(anatomy, stack, _embedding(anatomy, stack))
    hooks = (getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values())
    known = next((border for border in hooks if isinstance(border, Border)), None)
    pair = len(anatomy.stacks) > 1
    if known is not None:  # an anatomy read again after the last adapter has gone has another switch
        known.standing.switch = anatomy.switch
        if known.memory is not None:
            known.memory.switch = anatomy.switch
        if pair and stack == "encoder":
            _theirs(anatomy, "decoder")
    else:
        standing = Standing(anatomy.root, site.path, stack, anatomy.switch)
        memory = Standing(anatomy.root, _embedding(anatomy, "encoder"), "encoder", anatomy.switch) if pair and stack == "decoder" else None
        border = Border(standing, memory, pair and stack == "encoder")
        module.register_forward_pre_hook(border.enter, prepend=True, with_kwargs=True)
        module.register_forward_hook(border.leave)
        if pair and stack == "encoder" and "decoder" in anatomy.stacks:
            _theirs(anatomy, "decoder")
    return site


def _embedding(anatomy: Anatomy, stack: str) -> str:
    embedding = bare(reader(anatomy, stack).get_input_embeddings())
    return next(path for path, other in anatomy.modules() if other is embedding)


def reader(anatomy: Anatomy, stack: str) -> Any:
    """The smallest module around a stack that takes ids."""
    path = anatomy.stacks[stack].path
    while path:
        path = path.rpartition(".")[0]
        module = resolve(anatomy.root, path)
        if "input_ids" in inspect.signature(module.forward).parameters:
            return module
    raise ValueError(f"{type(anatomy.root).__name__} does not take ids, so no virtual token can stand among them")


def free(anatomy: Anatomy) -> int:
    """The first id of a new adapter."""
    taken = [adapter.first for _, around in anatomy.arounds() for adapter in around.adapters.values() if isinstance(adapter, Rows)]
    return max(taken, default=FIRST - ROOM) + ROOM


def virtual_ids(anatomy: Anatomy, name: str = "default") -> Tensor:
    """The ids (P,) of an adapter's virtual tokens, for texts that bring them themselves."""
    found = [each.adapters[name] for _, each in anatomy.arounds() if name in each.adapters]
    rows = next((adapter for adapter in found if isinstance(adapter, Rows)), None)
    if rows is None:
        raise ValueError(f"the adapter {name!r} has no virtual tokens")
    return torch.arange(rows.first, rows.first + rows.count())
