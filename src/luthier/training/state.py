"""Where a run stands: everything that changes while it trains, and so everything that a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.config import RunFailed
from luthier.training import checkpoint, optimizer, random
from luthier.training.average import Average
from luthier.training.checkpoint import Saved
from luthier.training.precision import LossScale
from luthier.training.settings import Training

if TYPE_CHECKING:
    from luthier.objectives._batches import Batches
    from luthier.tuning._attached import Attached, Cut


@dataclass
class Record:
    """The figures that go on from checkpoint to checkpoint. An evaluation is its figures with the step they are from."""

    step: int = 0
    tokens: int = 0
    time_s: float = 0.0
    before: dict[str, Any] | None = None  # the evaluation before the first step
    latest: dict[str, Any] | None = None
    best: dict[str, Any] | None = None  # with the lowest held-out loss, after at least one step

    def evaluated(self, figures: dict[str, float]) -> None:
        self.latest = {"step": self.step, **figures}
        if self.step == 0:
            self.before = self.latest
        elif self.best is None or figures["loss"] < self.best["loss"]:
            self.best = self.latest


@dataclass
class State:
    """The moving parts of a run."""

    attached: "Attached"
    batches: "Batches"
    optimizer: optimizer.Moving
    average: Average
    scale: LossScale | None
    record: Record = field(default_factory=Record)

    @classmethod
    def fresh(cls, attached: "Attached", batches: "Batches", training: Training, folder: Path | None = None) -> "State":
        moving = optimizer.build(training, attached.groups(), folder)
        return cls(attached, batches, moving, Average(optimizer.named(moving), training.ema), LossScale.of(training.precision))

    def save(self, folder: Path, keep: int) -> Path:
        """A checkpoint of this moment; older ones are removed, but for the newest `keep` and the best."""
        broken = [name for name, value in optimizer.named(self.optimizer).items() if not torch.isfinite(value).all()]
        if broken:
            there = checkpoint.newest(folder)
            raise RunFailed(f"step {self.record.step}: {broken[0]} is no longer finite; not saved, the last good checkpoint is {there}")
        path = checkpoint.write(folder, self.saved())
        checkpoint.prune(folder, keep, self.record.best["step"] if self.record.best else None)
        return path

    def saved(self) -> Saved:
        tensors = {"trainable": self.attached.state(), "optimizer": optimizer.state(self.optimizer), "average": self.average.means}
        state = {
            "record": vars(self.record),
            "scale": vars(self.scale) if self.scale else None,
            "batches": self.batches.state(),
            "random": random.state(),
        }
        return Saved(self.record.step, tensors, state)

    def cut(self, cuts: "Mapping[str, Cut] | None") -> None:
        """Parameters have become smaller: so does what is remembered of them."""
        for name, (dim, kept) in (cuts or {}).items():
            optimizer.cut(self.optimizer, name, dim, kept)
            if name in self.average.means:
                self.average.means[name] = optimizer.left(self.average.means[name], dim, kept)

    def restore(self, saved: Saved) -> None:
        self.restore_weights(saved)
        optimizer.load_state(self.optimizer, saved.tensors.get("optimizer", {}))
        self.record = Record(**saved.state["record"])
        if self.scale and saved.state["scale"]:
            self.scale = LossScale(**saved.state["scale"])
        self.batches.restore(saved.state["batches"])
        random.restore(saved.state["random"])  # last: restoring the others may draw

    def restore_weights(self, saved: Saved) -> None:
        self.attached.load_state(saved.tensors["trainable"])
        if self.average.means:
            self.average.load(saved.tensors["average"])
