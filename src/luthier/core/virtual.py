"""Virtual tokens among real ones: where they stand, and which positions the caller had passed.

Their ids lie beyond any vocabulary; an embedding with rows for them turns them into vectors. B rows, T tokens, P virtual tokens
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST = 1 << 30  # the ids from here on are virtual


@dataclass(frozen=True)
class Inserted:
    """One batch with virtual tokens in it. kept: where the tokens that were there before stand now, (B, T)."""

    ids: Tensor
    mask: Tensor | None
    kept: Tensor
    virtual: Tensor  # (B, T + P) bool, room that a row does not use included
    lengths: tuple[int, ...] | None = None

    def spread(self, values_BT: Tensor, fill: int) -> Tensor:
        """Values of the tokens at their new places; `fill` for virtual ones."""
        values_BT = values_BT.expand(self.kept.shape)
        return torch.full(self.ids.shape, fill, dtype=values_BT.dtype, device=values_BT.device).scatter(1, self.kept, values_BT)

    def taken(self, states_BTD: Tensor) -> Tensor:
        """The states of the tokens that were there before."""
        return states_BTD.gather(1, self.kept[..., None].expand(-1, -1, states_BTD.shape[-1]))


# From the number of rows: virtual ids (B, P), -1 for room that a row does not use, or None for none at all.
Chooser = Callable[[int], Tensor | None]


def insert(
    ids_BT: Tensor, mask_BT: Tensor | None, choose: Chooser, after: int = 0, lengths: tuple[int, ...] | None = None
) -> Inserted | None:
    """Before the first real token of every row, or of every packed document, or behind the first `after` ones."""
    documents = len(lengths) if lengths is not None and len(lengths) > 1 else len(ids_BT)
    chosen_BP = choose(documents)
    if chosen_BP is None:
        return None
    if lengths is not None and len(lengths) > 1:
        return _packed(ids_BT, mask_BT, chosen_BP, after, lengths)
    chosen_BP, count = chosen_BP.to(ids_BT.device), chosen_BP.shape[1]
    real_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
    start_B1 = real_BT.long().argmax(1, keepdim=True) + after
    used_BP = chosen_BP >= 0
    place_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    kept_BT = place_T + used_BP.sum(1, keepdim=True) * (place_T >= start_B1)
    step_P = torch.arange(count, device=ids_BT.device)
    wide_BP = torch.where(used_BP, start_B1 + step_P, len(place_T) + step_P)  # unused room is padding on the right, as all models take it
    ids = ids_BT.new_zeros(len(ids_BT), ids_BT.shape[1] + count).scatter(1, kept_BT, ids_BT).scatter(1, wide_BP, chosen_BP.clamp(min=0))
    virtual = torch.zeros_like(ids, dtype=torch.bool).scatter(1, wide_BP, True)
    mask = None
    if mask_BT is not None or not bool(used_BP.all()):
        mask = torch.zeros_like(virtual).scatter(1, kept_BT, real_BT).scatter(1, wide_BP, used_BP)
        mask = mask if mask_BT is None else mask.to(mask_BT.dtype)
    return Inserted(ids, mask, kept_BT, virtual, None if lengths is None else (ids.shape[1],))


def _packed(ids_1T: Tensor, mask_1T: Tensor | None, chosen_BP: Tensor, after: int, lengths: tuple[int, ...]) -> Inserted:
    real = torch.ones_like(ids_1T, dtype=torch.bool) if mask_1T is None else mask_1T.bool()
    parts = [
        insert(ids, None if mask_1T is None else mask, lambda _, row=row: row[row >= 0][None], after)
        for ids, mask, row in zip(ids_1T.split(lengths, 1), real.split(lengths, 1), chosen_BP, strict=True)
    ]
    found = [part for part in parts if part is not None]
    sizes = tuple(part.ids.shape[1] for part in found)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    masks = [part.mask for part in found if part.mask is not None]
    kept = torch.cat([part.kept + start for part, start in zip(found, starts, strict=True)], 1)
    ids, virtual = torch.cat([part.ids for part in found], 1), torch.cat([part.virtual for part in found], 1)
    return Inserted(ids, torch.cat(masks, 1) if masks else None, kept, virtual, sizes)
