"""Where our parameters live in a published checkpoint: a table of names, read in both directions."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Name:
    """`path` of the stored tensor; `transposed` where it is stored (d_in, d_out) as GPT-2's Conv1D is; `rows` [start, stop) of the
    output dimension where several of our tensors are stored as one."""

    path: str
    transposed: bool = False
    rows: tuple[int, int] | None = None


def linear(ours: str, theirs: str, bias: bool, transposed: bool = False, rows: tuple[int, int] | None = None) -> dict[str, Name]:
    """The rows of a table for one projection: its weight and, where it has one, its bias."""
    entry = {f"{ours}.weight": Name(f"{theirs}.weight", transposed, rows)}
    return entry | ({f"{ours}.bias": Name(f"{theirs}.bias", False, rows)} if bias else {})


def import_tensor(name: Name, stored: Tensor) -> Tensor:
    """Our tensor out of the stored one; a view, not a copy."""
    ours = stored.T if name.transposed else stored
    return ours if name.rows is None else ours[name.rows[0] : name.rows[1]]


def import_state(names: Mapping[str, Name], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names. KeyError where one is missing: the caller has checked."""
    return {ours: import_tensor(name, tensors[name.path]) for ours, name in names.items()}


def export_state(names: Mapping[str, Name], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names; parts of a fused tensor are joined in the order of their rows."""
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for ours, name in names.items():
        parts.setdefault(name.path, []).append((name.rows[0] if name.rows else 0, state[ours]))
    transposed = {name.path: name.transposed for name in names.values()}
    out = {}
    for path, pieces in parts.items():
        whole = torch.cat([tensor for _, tensor in sorted(pieces, key=lambda piece: piece[0])]) if len(pieces) > 1 else pieces[0][1]
        out[path] = (whole.T if transposed[path] else whole).contiguous()
    return out
