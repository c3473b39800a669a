"""Fold adapters into the base's weights, and say how far the logits moved."""

from typing import Any

import torch
from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.around import Around
from luthier.core.frozen import FrozenLinear
from luthier.core.transformer import Net


def merge(anatomy: Anatomy) -> float:
    """Fold the adapters at work into the weights for good and take every adapter away. A quantised base is turned back first.

    Returns the largest difference between the logits before and after, on random ids. Refuses before anything is changed.
    """
    names = anatomy.switch.flat(anatomy.active)
    arounds = anatomy.arounds()
    _check(anatomy, arounds, names)
    ids = torch.randint(0, _vocab(anatomy), (2, 16), generator=torch.Generator().manual_seed(0))
    before = probe(anatomy, ids)
    written: dict[int, nn.Parameter] = {}  # by the old parameter: one that modules share stays shared
    kept = []  # the old ones, so that no id is given twice
    dequantise(anatomy)
    for path, around in arounds:
        with torch.no_grad():
            changed = around.merged(names)
        for name, value in changed.items():
            base = around.base._parameters[name]
            around.base._parameters[name] = written.setdefault(id(base), nn.Parameter(value.detach().clone(), requires_grad=False))
            kept.append(base)
        for adapter in list(around.adapters):
            anatomy.at(path).unwrap(adapter)
    anatomy.switch.default, anatomy.switch.named = (), {}
    return float((probe(anatomy, ids) - before).abs().max())


def dequantise(anatomy: Anatomy) -> None:
    """Plain modules again in place of quantised ones, with the weights that those computed with."""
    for path, module in list(anatomy.modules()):
        if isinstance(module, FrozenLinear):
            anatomy.at(path).replace(module.plain())


def probe(anatomy: Anatomy, ids: Tensor) -> Tensor:
    """Logits, or last hidden states without a vocabulary, in evaluation mode and without gradients."""
    net = anatomy.net
    ids = ids.to(next(net.parameters()).device)
    modes = [(module, module.training) for module in net.modules()]  # parts may differ
    net.eval()
    try:
        with torch.no_grad():
            two = "encoder" in anatomy.stacks and "decoder" in anatomy.stacks
            if isinstance(net, Net):
                inputs: dict[str, Any] = {"decoder_ids": ids} if two else {}
                hidden = net.hidden(ids, **inputs)
                return net.logits(hidden) if "lm" in net.heads else hidden
            return net(input_ids=ids, **({"decoder_input_ids": ids} if two else {}))[0]
    finally:
        for module, training in modes:
            module.training = training


def same(one: Tensor | None, other: Tensor) -> bool:
    """Whether two places that share a parameter come out of merging with one value."""
    return one is not None and (one is other or torch.equal(one, other))


def _vocab(anatomy: Anatomy) -> int:
    return anatomy.embed.module.weight.shape[0]  # type: ignore[return-value]


def _check(anatomy: Anatomy, arounds: list[tuple[str, Around]], names: tuple[str, ...]) -> None:
    for path, around in arounds:
        active = {name: around.adapters[name] for name in names if name in around.adapters}
        for name, adapter in active.items():
            if not adapter.mergeable:
                what = f"{type(adapter).__name__} around {path}" + (f" (of {name})" if len(names) > 1 else "")
                raise ValueError(f"{what} cannot be merged: its output is not linear in its input")
        changed = around.merged(tuple(names)) if active else {}
        for name, value in changed.items():
            if name not in around.base._parameters:  # a quantised weight is nobody else's
                continue
            others = [site.around for site, own in anatomy.owners(around.base._parameters[name]) if site.path != path]  # type: ignore[arg-type]
            if any(other is None or not same(other.merged(names).get(name), value) for other in others):
                raise ValueError(
                    f"{path}.{name} is tied to another module, and the adapter is around one of them only: merging would change both. "
                    "Leave the role out, or load the model with the tie undone"
                )
