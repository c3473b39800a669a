"""The frozen blocks below the lowest attached one: what they make of a batch is worked out once for all runs that would get the same.

The same batch, packed alike, with the same weights and (where they have dropout) the same random numbers: then the states are the same to the
bit, and the random generator is left as it would have been. Runs of one seed that take turns meet step by step; what is measured on held-out
rows is met by all of them, each time.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor, nn

from luthier.anatomy.around import Around
from luthier.core.block import Context
from luthier.core.transformer import Net, Transformer
from luthier.training.lanes import draws

BUDGET = 2**28  # bytes of states that are kept


@dataclass(frozen=True)
class State:
    """What some layers made of a batch. after: the random generator then, where they draw; seconds: what it took from the first layer on."""

    x: Tensor
    after: Tensor | None
    seconds: float


@dataclass
class Known:
    """States by what they follow from and their layer; the ones not asked for longest go first. levels: layers asked for, by weights."""

    budget: int = BUDGET
    found: OrderedDict[tuple[bytes, int], State] = field(default_factory=OrderedDict)
    levels: dict[str, set[int]] = field(default_factory=dict)
    size: int = 0
    lock: Lock = field(default_factory=Lock)  # halves of a batch come at once

    def get(self, key: tuple[bytes, int]) -> State | None:
        with self.lock:
            if key in self.found:
                self.found.move_to_end(key)
            return self.found.get(key)

    def keep(self, key: tuple[bytes, int], state: State) -> None:
        with self.lock:
            if key not in self.found:
                self.found[key] = state
                self.size += state.x.nbytes
            while self.size > self.budget:
                self.size -= self.found.popitem(last=False)[1].x.nbytes


@dataclass
class Lower:
    """The first `count` layers of one run's net. name: which weights they have; spared: seconds of training that others' work has saved."""

    net: Transformer
    count: int
    name: str
    known: Known
    spared: float = 0.0

    def __post_init__(self) -> None:
        blocks = [self.net.blocks[i] for i in self.net.order[: self.count]]
        self.random = any(draws(module) for block in blocks for module in block.modules())
        self.known.levels.setdefault(self.name, set()).add(self.count)

    def __deepcopy__(self, memo: dict) -> None:
        """A copy of the net is no run of the grid."""

    def __call__(self, x: Tensor, context: Context) -> tuple[int, Tensor]:
        mask = context.mask
        plain = mask.keys is None and mask.allow is None and context.cache is None and context.inserted is None and not context.extra
        drawing = self.random and self.net.training
        if not plain or x.requires_grad or (drawing and x.device.type != "cpu"):
            return 0, x
        key = self.key(x, context, drawing)
        levels = sorted(level for level in self.known.levels[self.name] if level <= self.count)
        first = 0
        for level in reversed(levels):  # the deepest states that are known
            found = self.known.get((key, level))
            if found is not None:
                first, x = level, found.x
                self.spared += found.seconds if torch.is_grad_enabled() else 0.0
                if found.after is not None:
                    torch.set_rng_state(found.after)
                break
        seconds = found.seconds if found is not None else 0.0
        for level in levels[levels.index(first) + 1 if first else 0 :]:
            begun = time.monotonic()
            for layer in range(first, level):
                x = self.net.blocks[self.net.order[layer]](x, context, layer)
            first, seconds = level, seconds + time.monotonic() - begun
            self.known.keep((key, level), State(x, torch.get_rng_state() if drawing else None, seconds))
        return self.count, x

    def key(self, x: Tensor, context: Context, drawing: bool) -> bytes:
        """What the states follow from. Positions and segments are in x; the rotation follows from the lengths."""
        mask = context.mask
        told = f"{self.name} {x.dtype} {tuple(x.shape)} {mask.causal} {mask.lengths} {mask.prompts} {mask.window}"
        digest = hashlib.blake2b(told.encode(), digest_size=16)
        digest.update(x.detach().contiguous().cpu().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
        if drawing:
            digest.update(torch.get_rng_state().numpy())  # type: ignore[arg-type]
        return digest.digest()


def lowest(net: Net, trained: Iterable[Tensor]) -> int:
    """How many of the first layers nothing is attached to and nothing trains in; 0 where the input of the layers is not the base's."""
    plain = isinstance(net, Transformer) and type(net).hidden is Transformer.hidden and type(net).layers is Transformer.layers
    if not isinstance(net, Transformer) or not plain or net.virtual is not None:
        return 0
    mine = {id(parameter) for parameter in trained}

    def touched(module: nn.Module) -> bool:
        return any(isinstance(part, Around) for part in module.modules()) or any(id(p) in mine for p in module.parameters())

    before = [net.embed, *(part for part in (net.rotary, net.relative) if part is not None)]
    if any(touched(part) for part in before):
        return 0
    changed = [touched(block) for block in net.blocks]
    return next((layer for layer, index in enumerate(net.order) if changed[index]), len(net.order))
