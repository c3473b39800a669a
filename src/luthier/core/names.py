"""Where our parameters live in a published checkpoint: a table of names, read in both directions."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Name:
    """`path` of the stored tensor; `transposed` where it is stored (d_in, d_out) as GPT-2's Conv1D is; `rows` [start, stop) of the
    output dimension where several of our tensors are stored as one, and the same of `every` so many rows where these alternate (BLOOM's
    heads); `shape` it is stored in, where that has more dimensions than ours: a matrix with one of its sides split up, or a vector with a
    leading 1."""

    path: str
    transposed: bool = False
    rows: tuple[int, int] | None = None
    shape: tuple[int, ...] | None = None
    every: int = 0

    def index(self, count: int) -> Tensor | None:
        """Which stored rows our `count` rows are; None for all of them."""
        if self.rows is None:
            return None
        here = torch.arange(*self.rows)
        return (torch.arange(count // len(here))[:, None] * self.every + here).flatten() if self.every else here


def linear(
    ours: str, theirs: str, bias: bool, transposed: bool = False, rows: tuple[int, int] | None = None, every: int = 0
) -> dict[str, Name]:
    """The rows of a table for one projection: its weight and, where it has one, its bias."""
    entry = {f"{ours}.weight": Name(f"{theirs}.weight", transposed, rows, every=every)}
    return entry | ({f"{ours}.bias": Name(f"{theirs}.bias", False, rows, every=every)} if bias else {})


def import_tensor(name: Name, stored: Tensor) -> Tensor:
    """Our tensor out of the stored one; a view, not a copy, unless its rows lie apart."""
    if name.shape is not None:
        stored = stored.flatten(1) if len(name.shape) > 2 else stored.flatten()
    ours = turned(stored) if name.transposed else stored
    if name.rows is None:
        return ours
    return ours.unflatten(0, (-1, name.every))[:, slice(*name.rows)].flatten(0, 1) if name.every else ours[slice(*name.rows)]


def turned(tensor: Tensor) -> Tensor:
    """Its dimensions in the reverse order."""
    return tensor.permute(*range(tensor.dim())[::-1])


def import_state(names: Mapping[str, Name], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names. KeyError where one is missing: the caller has checked."""
    return {ours: import_tensor(name, tensors[name.path]) for ours, name in names.items()}


def export_state(names: Mapping[str, Name], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names; parts of a fused tensor are joined in the order of their rows."""
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for ours, name in names.items():
        start, stop = name.rows or (0, 0)
        part = state[ours].unflatten(0, (-1, stop - start)) if name.every else state[ours]
        parts.setdefault(name.path, []).append((start, part))
    forms = {name.path: name for name in names.values()}
    out = {}
    for path, pieces in parts.items():
        every = forms[path].every > 0
        tensors = [tensor for _, tensor in sorted(pieces, key=lambda piece: piece[0])]
        whole = torch.cat(tensors, int(every)) if len(tensors) > 1 else tensors[0]
        whole = whole.flatten(0, 1) if every else whole
        whole = (turned(whole) if forms[path].transposed else whole).contiguous()
        out[path] = whole if forms[path].shape is None else whole.view(forms[path].shape)
    return out
