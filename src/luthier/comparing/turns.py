"""Runs that take turns in one process, step by step, each with random generators of its own, which are put back before each of its turns."""

import gc
import io
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from luthier.comparing import latency
from luthier.comparing.lower import Lower
from luthier.comparing.memory import Gauge
from luthier.comparing.shared import Shared, available
from luthier.config import RunFailed
from luthier.report import read_json
from luthier.run import Ready, Result, steps
from luthier.run_file import Run
from luthier.training import folder as folders
from luthier.training import random
from luthier.training.stop import Interrupted, Stop

Line = dict[str, Any]
Stepped = Callable[[str, Line], None]  # (job, the line of its step)
Ended = Callable[[str, str | None], None]  # (job, None or the sentence that says why it failed)


@dataclass(frozen=True)
class Job:
    """One run to be done in its folder."""

    name: str
    run: Run
    latency: bool = False  # whether to measure it

    @property
    def folder(self) -> Path:
        return Path(self.run.output).expanduser()


@dataclass
class Turn:
    """A job at work. random: its generators, as its last turn left them."""

    job: Job
    shared: Shared
    stop: Stop
    gauge: Gauge = field(default_factory=Gauge)
    random: dict[str, Any] | None = None
    ready: Ready | None = None

    def __post_init__(self) -> None:
        resume = "auto" if (self.job.folder / folders.CONFIG).is_file() else None
        silent = Console(file=io.StringIO(), quiet=True)  # the grid has a display of its own
        self.going: Generator[Line, None, Result] = steps(self.job.run, resume, make_ready=self.make, console=silent, stop=self.stop)

    def make(self, config: Run) -> Ready:
        self.ready = self.shared.ready(config)
        return self.ready

    def next(self) -> Line | None:
        """The next step; None behind the last."""
        if self.random is not None:
            random.restore(self.random)
        with self.gauge.watching():
            line = next(self.going, None)
        self.random = random.state()
        return line

    def finish(self) -> None:
        """What only a grid knows goes into result.json: the time and memory that the run would have taken alone, and its latency."""
        assert self.ready is not None
        model, path, kind = self.ready.model, self.job.folder / folders.RESULT, self.job.run.training.optimizer
        result = read_json(path, {})
        if isinstance(lower := getattr(model.net, "lower", None), Lower):
            result["time_s"] += lower.spared
        trained = self.ready.attached.parameters
        result["memory_bytes"] = self.gauge.alone(self.shared.floor(model), trained, kind) or result["memory_bytes"]
        if self.job.latency:
            result["latency"] = latency.measure(model)
        folders.write_json(path, result)


@dataclass
class Turns:
    """together: how many take turns; 0: those of a seed, whose batches are the same, as long as there is memory."""

    stop: Stop
    together: int
    stepped: Stepped
    ended: Ended
    shared: Shared = field(default_factory=Shared)

    def go(self, jobs: Sequence[Job]) -> None:
        """Does all of them, or until somebody asks to stop; those at work then have a checkpoint each."""
        waiting, working = list(jobs), []
        while working or (waiting and not self.stop.asked):
            while waiting and not self.stop.asked and self.room(waiting[0], working):
                working.append(Turn(waiting.pop(0), self.shared, self.stop))
            for turn in list(working):
                if not self.took(turn):
                    working.remove(turn)
                    turn.going.close()
                    del turn
                    gc.collect()

    def room(self, job: Job, working: Sequence[Turn]) -> bool:
        """Whether another run may begin."""
        if not working or self.together:
            return len(working) < max(1, self.together)
        return job.run.seed == working[0].job.run.seed and available() > self.shared.largest()

    def took(self, turn: Turn) -> bool:
        """Gives a run its turn; whether it wants another one."""
        name = turn.job.name
        try:
            line = turn.next()
            if line is not None:
                self.stepped(name, line)
                return True
            turn.finish()
            self.ended(name, None)
        except Interrupted:
            pass
        except Exception as error:  # whatever a run meets is its own
            self.ended(name, told(error))
        return False


def told(error: Exception) -> str:
    plain = isinstance(error, ValueError | OSError | RunFailed)
    return str(error) if plain else f"{type(error).__name__}: {error}"
