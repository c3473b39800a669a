"""The training loop, the only one: next batch, forward, named terms, backward, clip, step, after_step, log, save."""

import math
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from rich.console import Console
from torch import Tensor

from luthier.config import RunFailed
from luthier.core.transformer import Net
from luthier.training import checkpoint, lanes, memory, optimizer, random
from luthier.training import log as logs
from luthier.training.precision import LossScale, lowered, settle
from luthier.training.schedule import factor
from luthier.training.settings import Training
from luthier.training.state import State
from luthier.training.stop import Interrupted, Stop, watched

if TYPE_CHECKING:
    from luthier.objectives._batch import Batch
    from luthier.objectives._batches import Batches
    from luthier.objectives._objective import Objective
    from luthier.sources.model import Model
    from luthier.tuning._attached import Attached

Evaluate = Callable[[bool], dict[str, float]]  # figures on held-out rows, "loss" among them; told whether it is the run's last evaluation
Line = dict[str, Any]  # what there is to log about a step
Returned = TypeVar("Returned")


@dataclass(frozen=True)
class History:
    """What a run did. An evaluation is a dictionary: step, loss (nats per label) and other figures."""

    steps: int
    tokens: int
    time_s: float
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    best: dict[str, Any] | None


def train(
    model: "Model",
    attached: "Attached",
    objective: "Objective",
    batches: "Batches",
    training: Training,
    folder: Path,
    evaluate: Evaluate | None = None,
    resume: Path | None = None,
    console: Console | None = None,
) -> History:
    """Trains what is attached to the model, in place, and keeps metrics.jsonl and checkpoints/ in the folder.

    resume: a checkpoint of the same run; the result then equals the uninterrupted run's to the bit. Raises RunFailed when a figure is no
    longer finite or the disk is full, Interrupted after Ctrl-C (a checkpoint is written first).
    """
    return last(steps(model, attached, objective, batches, training, folder, evaluate, resume, console))


def last(going: Generator[Any, None, Returned]) -> Returned:
    """Goes through all of it; what it returns."""
    while True:
        try:
            next(going)
        except StopIteration as end:
            return end.value


def steps(
    model: "Model",
    attached: "Attached",
    objective: "Objective",
    batches: "Batches",
    training: Training,
    folder: Path,
    evaluate: Evaluate | None = None,
    resume: Path | None = None,
    console: Console | None = None,
    stop: Stop | None = None,
) -> Generator[Line, None, History]:
    """`train`, pausing after every step: several runs may take turns. stop: who asks this one to end; left out, it listens for Ctrl-C itself."""
    model.net.recompute = training.recompute  # type: ignore[assignment]
    settle(model.net, training.precision)
    model.net.fuse()
    count = training.steps if training.steps is not None else count_steps(batches, training.epochs or 0)
    attached.begin(count)
    state = State.fresh(attached, batches, training, folder)
    if resume is not None:
        _go_on(state, resume, folder, count)
    folder.mkdir(parents=True, exist_ok=True)
    logs.cut(folder / logs.NAME, state.record.step or -1)  # at step 0 the first line is written anew
    listening = watched() if stop is None else nullcontext(stop)
    with listening as stop, logs.Log(folder, count, state.record.step, training.tensorboard, console) as log:
        run = _Run(model.net, objective, state, training, folder, evaluate, count, log)
        run.begin()
        while state.record.step < count:
            if stop.asked:
                raise Interrupted(f"stopped after step {state.record.step} of {count}; {run.save()} holds it; go on with --resume auto")
            yield {"steps": count, **run.step()}
        run.end()
    record = state.record
    after = record.best if training.result == "best" and record.best else record.latest
    return History(record.step, record.tokens, record.time_s, record.before, after, record.best)


def count_steps(batches: "Batches", epochs: float) -> int:
    """How many steps so many passes over the data take: found by packing them once, without the model."""
    start, steps = batches.state(), 0
    while batches.epoch < epochs:
        next(batches)
        steps += 1
    batches.restore(start)
    return steps


def _go_on(state: State, path: Path, folder: Path, steps: int) -> None:
    saved = checkpoint.read(path)
    if saved.step > steps:
        raise ValueError(f"{path} stands at step {saved.step}, beyond the {steps} steps of this run; raise training.steps")
    state.restore(saved)
    checkpoint.set_aside(folder / "checkpoints", saved.step)


@dataclass
class _Run:
    net: Net
    objective: "Objective"
    state: State
    training: Training
    folder: Path
    evaluate: Evaluate | None
    steps: int
    log: logs.Log

    def begin(self) -> None:
        if self.state.record.step == 0 and self.evaluate is not None:
            figures = self.measure()
            self.log.write({"step": 0, **figures})
            self.log.show({"step": 0, **figures})

    def step(self) -> Line:
        begun, record, training = time.monotonic(), self.state.record, self.training
        figures = advance(self.net, self.objective, self.state, training, self.steps, self.last_good)
        seconds = time.monotonic() - begun
        record.step += 1
        record.tokens += figures["tokens"]
        record.time_s += seconds
        line = {"step": record.step, **figures, "tokens_per_s": figures["tokens"] / seconds, "memory_bytes": memory.held()}
        if "skipped" in figures:
            self.log.say(f"step {record.step}: the gradients overflow in fp16; skipped, the loss scale is now {figures['skipped']:g}")
        best = record.best
        if self.evaluate is not None and self.due(training.evaluate_every):
            line |= self.measure()
        if self.due(training.log_every) or "held_out" in line:
            self.log.write(line)  # before the checkpoint, so that a resume finds it
        self.log.show(line)
        if self.due(training.save_every) or record.best is not best:
            self.save()
        return line

    def due(self, every: int) -> bool:
        step = self.state.record.step
        return step == self.steps or (every > 0 and step % every == 0)

    def measure(self) -> dict[str, float]:
        """The evaluation, without a trace in the weights, the gradients or the random generators."""
        assert self.evaluate is not None
        kept = random.state()
        self.net.eval()
        with torch.no_grad(), self.state.average.shown(), lowered(self.net, self.training.precision):
            figures = self.evaluate(self.state.record.step == self.steps)
        self.net.train()
        random.restore(kept)
        if not math.isfinite(figures["loss"]):
            raise RunFailed(f"step {self.state.record.step}: the held-out loss is {figures['loss']}; {self.last_good()}")
        self.state.record.evaluated(figures)
        return {"held_out" if name == "loss" else f"held_out_{name}": value for name, value in figures.items()}

    def save(self) -> Path:
        return self.state.save(self.folder / "checkpoints", self.training.keep)

    def last_good(self) -> str:
        path = checkpoint.newest(self.folder / "checkpoints")
        there = f"the last good checkpoint is {path}" if path else "there is no checkpoint yet"
        return f"{there}; lower training.rate, or warm up longer"

    def end(self) -> None:
        """The weights the run hands over: the last or the best ones, averaged where the run averages."""
        record = self.state.record
        if self.evaluate is not None and (record.latest is None or record.latest["step"] != record.step):
            self.measure()
        self.save()
        if self.training.result == "best" and record.best and record.best["step"] != record.step:
            self.state.restore_weights(checkpoint.read(self.folder / "checkpoints" / f"step-{record.best['step']}"))
        self.state.average.adopt()
        self.net.eval()


def advance(net: Net, objective: "Objective", state: State, training: Training, steps: int, last_good: Callable[[], str]) -> dict[str, Any]:
    """One optimizer step over the micro-batches of one batch; what there is to log about it."""
    step, moving = state.record.step, state.optimizer
    rate = factor(training, step, steps)
    optimizer.set_rates(moving, rate)
    moving.zero_grad()
    net.train()
    micro = next(state.batches)
    terms = accumulate(net, objective, micro, state.attached, training.precision, state.scale.value if state.scale else 1.0)
    for name, value in terms.items():
        if not math.isfinite(value):
            raise RunFailed(f"step {step + 1}: the term {name!r} of the loss is {value}; {last_good()}")
    parameters = list(optimizer.named(moving).values())
    if state.scale:
        state.scale.unscale(parameters)
    norm = float(optimizer.clip(parameters, training.clip))
    figures = {
        "loss": sum(terms.values()),
        **({f"loss_{name}": value for name, value in terms.items()} if len(terms) > 1 else {}),
        "rate": training.rate * rate,
        "norm": norm,
        "tokens": sum(batch.tokens for batch in micro),
        "labels": sum(batch.labelled for batch in micro),
        "epoch": state.batches.epoch,
    }
    if state.scale:
        state.scale.learn(math.isfinite(norm))
    if math.isfinite(norm):
        moving.step()
        state.cut(state.attached.after_step(step + 1))
        state.average.update(step + 1)
    elif state.scale and state.scale.value >= LossScale.smallest:
        figures |= {"norm": None, "skipped": state.scale.value}
    else:
        raise RunFailed(f"step {step + 1}: the norm of the gradients is {norm}; {last_good()}")
    return figures


def accumulate(
    net: Net, objective: "Objective", micro: Sequence["Batch"], attached: "Attached", precision: str = "fp32", scale: float = 1.0
) -> dict[str, float]:
    """Gradients of the whole step's loss: each term's sum over all micro-batches / its count over all of them; and the terms' values."""
    counts: Counter[str] = Counter()
    for batch in micro:
        counts.update(batch.counts())
    values: dict[str, Tensor] = {}
    device = next(net.parameters()).device
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]  # `lowered` puts casts in their places

    def loss_of(batch: "Batch") -> tuple[Tensor, dict[str, Tensor]]:
        parts: dict[str, Tensor] = {}
        for running in attached.running(batch.adapter):  # members of a parallel composition learn as if each were alone
            with running:
                parts = {name: parts.get(name, 0) + value for name, value in _parts(net, objective, batch, counts).items()}
        return _trainable(sum(parts.values()), scale), parts  # type: ignore[arg-type]

    with lowered(net, precision):
        for batch in micro:
            passes = len(attached.running(batch.adapter))
            for parts in lanes.backward(loss_of, batch.to(device), net, trained, objective.together):
                for name, value in parts.items():
                    values[name] = values.get(name, 0) + value.detach() / passes
    penalty = attached.penalty()
    if penalty is not None:
        _trainable(penalty, scale).backward()
        values["penalty"] = penalty.detach()
    return {name: float(value) for name, value in values.items()}


def _parts(net: Net, objective: "Objective", batch: "Batch", counts: Counter[str]) -> dict[str, Tensor]:
    hidden = objective.forward(net, batch)
    terms = objective.loss(hidden, net.heads, batch)
    assert set(terms) <= set(counts), f"terms {sorted(terms)} without counts: the batch counts {sorted(counts)}"
    return {name: term.sum * (term.weight / max(1, counts[name])) for name, term in terms.items()}


def _trainable(loss: Tensor, scale: float) -> Tensor:
    if not loss.requires_grad:
        raise ValueError("the loss does not depend on anything that trains; choose roles or heads that the objective reaches")
    return loss * scale if scale != 1 else loss
