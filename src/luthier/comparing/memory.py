"""The memory of one run among several in a process: what it would have needed alone, as well as that can be told.

It is what the process holds before any run (programs, data, the base), what the run keeps from step to step (its parameters, its optimizer's
moments), and the most that one of its steps took on top of what was there when the step began. On CUDA the devices' memory; where a system
does not tell its peaks, the process's.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from luthier.training.memory import begin, held, known, peak
from luthier.training.paging import trim

MOMENTS = {"adamw": 2, "sgd": 1, "adafactor": 1}  # at most


@dataclass
class Gauge:
    """The most that a step of one run took. What earlier runs freed and the allocator kept is given back now and then, or it would hide it."""

    steps: int = 0
    most: int = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.steps += 1
        if not known() or self.steps == 1:  # the first makes the run, too
            yield
            return
        if self.steps & (self.steps - 1) == 0:
            trim()
        begin()
        before = held()
        yield
        self.most = max(self.most, peak() - before)

    def alone(self, floor: int, trained: Mapping[str, Tensor], kind: str) -> int:
        """Bytes; 0 where they cannot be told. floor: of the process with the base; trained: the run's parameters; kind: of its optimizer."""
        kept = sum(value.nbytes for value in trained.values()) * (1 + MOMENTS[kind])
        return floor + kept + self.most if self.most else 0
