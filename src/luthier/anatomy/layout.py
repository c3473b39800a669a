"""Which layout of table.py fits a list of blocks, and which rows of a fused projection a role has."""

from typing import Any

import torch
from torch import Tensor, nn

from luthier.anatomy.site import bare, resolve
from luthier.anatomy.table import ATTENTION, CROSS, FEED_FORWARD, NORMS, Fused, Layout, is_norm, is_projection, transposed, values_of


def parts_of(blocks: nn.ModuleList, kind: str) -> dict[str, str | Fused]:
    attention = _fit(ATTENTION, blocks, kind)
    if not attention:
        return {}
    cross = {f"cross.{role}": part for role, part in _fit(CROSS, blocks, kind).items()}
    return attention | cross | _fit(FEED_FORWARD, blocks, kind) | _fit(NORMS, blocks, kind)


def _fit(layouts: tuple[Layout, ...], blocks: nn.ModuleList, kind: str) -> dict[str, str | Fused]:
    for layout in layouts:
        fits = any(all(has(block, path_of(part)) for part in layout.parts.values()) for block in blocks)
        if fits and (not layout.types or kind in layout.types):
            return layout.parts
    return {}


def has(block: nn.Module, path: str) -> bool:
    try:
        module = bare(resolve(block, path))
    except AttributeError:
        return False
    return is_projection(module) or is_norm(module)


def path_of(part: str | Fused) -> str:
    return part.path if isinstance(part, Fused) else part


def rows_of(config: Any, module: nn.Module, part: Fused) -> Tensor:
    """The output rows of a fused projection that are this part's."""
    weight = values_of(module)["weight"]
    total = weight.shape[1] if transposed(module) else weight.shape[0]
    heads = config.num_attention_heads
    if part.per_head:  # [head, part, head_dim] in storage order
        return torch.arange(total).view(heads, len(part.parts), -1)[:, part.index].reshape(-1)
    groups = getattr(config, "num_key_value_heads", None) or heads
    shares = [heads, groups, groups] if part.parts == ("q", "k", "v") else [1] * len(part.parts)
    start, stop = (total * sum(shares[:n]) // sum(shares) for n in (part.index, part.index + 1))
    return torch.arange(start, stop)
