"""What the runs of a grid have in common, made once: the base's weights, the rows, the label names.

Each run has modules and parameters of its own, and its frozen parameters are views of one storage. A method that changes the base's own
values gets a copy of those it changes, so no run sees what another one does.
"""

import copy
import json
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.comparing import memory
from luthier.comparing.lower import Known, Lower, lowest
from luthier.core.transformer import Net
from luthier.data.stream import Stream, open_stream
from luthier.objectives._batch import AT_ONCE, Example
from luthier.run import Ready, base, prepare
from luthier.run_file import Run, make, section
from luthier.sources.model import Model
from luthier.training import random
from luthier.training.precision import settle
from luthier.tuning._tune import tokens_of


@dataclass
class Base:
    """A model as runs start from it. drawn: whether making it took random numbers, so that it belongs to one seed."""

    model: Model
    drawn: dict[str, Any] | None
    laid: dict[str, dict[tuple, Tensor]] = field(default_factory=dict)  # precision -> a stored weight's place -> it, as training lays it

    def lend(self) -> Model:
        """The model with modules of its own over the same weights."""
        ours = self.model
        return Model(over(ours.net), ours.tokenizer, ours.template, ours.source)

    def lay(self, net: Net, trained: Iterable[Tensor], precision: str) -> None:
        """Gives a run's frozen weights the precision and the layout that training would give them, one copy for all runs."""
        mine = {id(parameter) for parameter in trained}
        if precision not in self.laid:
            made = over(self.model.net).requires_grad_(False)
            before = {name: place(value) for name, value in made.named_parameters()}
            settle(made, precision)
            made.fuse()
            self.laid[precision] = {before[name]: value.data for name, value in made.named_parameters()}
        known = {place(value) for value in self.model.net.parameters()}
        for parameter in net.parameters():
            if id(parameter) in mine:
                if parameter.untyped_storage().data_ptr() in {pointer for pointer, *_ in known}:
                    parameter.data = parameter.data.clone()  # it changes: nobody else's
            elif (found := self.laid[precision].get(place(parameter))) is not None:
                parameter.data = found


def over(net: Net) -> Net:
    """The same net in modules and parameters of its own; the weights' memory is shared."""
    memo: dict[int, Any] = {id(value): nn.Parameter(value.detach(), value.requires_grad) for value in net.parameters()}
    return copy.deepcopy(net, memo)


def available() -> int:
    """Bytes of memory that are free; where the system does not say, none are known to be."""
    free = Path("/proc/meminfo")
    lines = dict(line.split(":", 1) for line in free.read_text().splitlines()) if free.exists() else {}
    return int(lines.get("MemAvailable", "0 kB").split()[0]) * 1024


def place(value: Tensor) -> tuple:
    """Which part of which memory a tensor is."""
    return value.untyped_storage().data_ptr(), value.storage_offset(), tuple(value.shape), value.stride(), value.dtype


class Made(OrderedDict[str, list[list[Example]]]):
    """Examples by what they follow from. The ones made longest ago go first, or a long training set would be kept whole."""

    limit = 2**16  # rows, 128 at a time

    def __setitem__(self, key: str, value: list[list[Example]]) -> None:
        super().__setitem__(key, value)
        while len(self) * AT_ONCE > self.limit:
            self.popitem(last=False)


@dataclass
class Shared:
    """Makes runs ready, as `prepare` does; what two of them need alike is made for the first."""

    bases: dict[str, Base] = field(default_factory=dict)
    known: Known = field(default_factory=Known)
    start: int = 0  # bytes that the process holds besides the first base, once that is loaded
    streams: dict[str, Stream] = field(default_factory=dict)
    objectives: dict[str, Any] = field(default_factory=dict)
    made: dict[str, Made] = field(default_factory=dict)  # by base, whose tokenizer made them

    def ready(self, config: Run) -> Ready:
        method = make("tuning", config.tuning)
        stream = self.stream(config)
        config = replace(config, objective=self.objective(config, stream))
        if tokens_of(method):  # the tokenizer grows
            return prepare(config, stream)
        lender = self.base(config)
        ready = prepare(config, stream, lender.lend(), lender.drawn)
        ready.model.made = self.made.setdefault(str(id(lender)), Made())
        trained = list(ready.attached.parameters.values())
        lender.lay(ready.model.net, trained, config.training.precision)
        count = lowest(ready.model.net, trained)
        if count:
            name = f"{id(lender)} {config.training.precision}"
            ready.model.net.lower = Lower(ready.model.net, count, name, self.known)  # type: ignore[assignment, arg-type]
        return ready

    def floor(self, model: Model) -> int:
        """Bytes that the process would hold with this model and nothing else."""
        return self.start + sum(value.nbytes for value in model.net.parameters() if not value.requires_grad)

    def largest(self) -> int:
        """Bytes that a run over one of the bases may take: copies of its weights, gradients and two moments, and as much for activations."""
        sizes = [sum(p.nbytes for p in each.model.net.parameters()) for each in self.bases.values()]
        return 8 * max(sizes, default=0)

    def stream(self, config: Run) -> Stream:
        """The rows of a run, at their start."""
        key = json.dumps([config.settings()["data"], config.seed], default=str)
        if key not in self.streams:
            self.streams[key] = open_stream(config.data, config.seed)
        return copy.copy(self.streams[key])

    def objective(self, config: Run, stream: Stream) -> Any:
        """With the label names of the data filled in."""
        key = json.dumps([section("objectives", config.objective), config.settings()["data"], config.seed], default=str)
        if key not in self.objectives:
            self.objectives[key] = make("objectives", config.objective).prepare(stream)
        return self.objectives[key]

    def base(self, config: Run) -> Base:
        named = str(config.model) if isinstance(config.model, str) else json.dumps(config.model, default=lambda each: str(id(each)))
        alike = f"{named} {config.device}"
        for key in (alike, f"{alike} {config.seed}"):
            if key in self.bases:
                return self.bases[key]
        random.seed_all(config.seed)
        before = torch.get_rng_state()
        model = base(config)
        if memory.known() and not self.start:
            self.start = max(0, memory.held() - sum(value.nbytes for value in model.net.parameters()))
        drawn = None if torch.equal(before, torch.get_rng_state()) else random.state()
        self.bases[alike if drawn is None else f"{alike} {config.seed}"] = Base(model, drawn)
        return self.base(config)
