"""What is seen of a run while it works: metrics.jsonl, a progress bar (plain lines when not a terminal), TensorBoard on request.

metrics.jsonl has one JSON object per line and one line per step: loss, rate, norm, tokens, and after an evaluation held_out. Step 0 is
before training. It is only appended to; a resumed run first cuts what lies past its checkpoint.
"""

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config import RunFailed

if TYPE_CHECKING:
    from rich.console import Console

NAME = "metrics.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line torn by a killed process is left out."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None
    try:
        found = json.loads(f"[{','.join(lines)}]")  # all at once takes a third of the time
    except json.JSONDecodeError:
        found = []
    return found if len(found) == len(lines) else _one_by_one(path, lines)


def _one_by_one(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    found = []
    for i, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            if i + 1 < len(lines):
                raise ValueError(f"{path}:{i + 1}: not a JSON object: {error.msg}") from None
    return found


def cut(path: Path, step: int) -> None:
    """Removes the lines past `step`, and a torn last one, in one move."""
    lines = [line for line in read(path) if line["step"] <= step]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(partial, path)


class Log:
    """A context that shows and records a run of `steps` steps, of which `done` are behind."""

    def __init__(self, folder: Path, steps: int, done: int = 0, tensorboard: bool = False, console: "Console | None" = None) -> None:
        from rich.console import Console  # here: reading finished runs needs no terminal
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.path, self.steps = folder / NAME, steps
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.board = _board(folder, done) if tensorboard else None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=steps, completed=done, figures="")
        self.begun, self.done = time.monotonic(), done

    def __enter__(self) -> "Log":
        self.file = self.path.open("a", encoding="utf-8")
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        self.file.close()
        if self.board is not None:
            self.board.close()

    def show(self, figures: dict[str, Any]) -> None:
        """Moves the bar; without a terminal, about twenty lines in a run."""
        step = figures["step"]
        self.bar.update(self.task, completed=step, figures=_words(figures))
        if not self.console.is_terminal and ("held_out" in figures or step % max(1, self.steps // 20) == 0):
            self.say(f"step {step}/{self.steps}  {_words(figures)}{self._left(step)}")

    def write(self, figures: dict[str, Any]) -> None:
        """One line of metrics.jsonl, whole in one write."""
        try:
            self.file.write(json.dumps(figures) + "\n")
            self.file.flush()
        except OSError as error:
            raise RunFailed(f"cannot write {self.path}: {error.strerror}; make room and go on with --resume auto") from error
        if self.board is not None:
            for name, value in figures.items():
                if isinstance(value, int | float) and name != "step":
                    self.board.add_scalar(name, value, figures["step"])

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def _left(self, step: int) -> str:
        if not self.done < step < self.steps:
            return ""
        seconds = (time.monotonic() - self.begun) / (step - self.done) * (self.steps - step)
        return f"  {_duration(seconds)} left"


def _words(figures: dict[str, Any]) -> str:
    parts = [f"loss {figures['loss']:.4f}"] if "loss" in figures else []
    parts += [f"held-out {figures['held_out']:.4f}"] if "held_out" in figures else []
    parts += [f"{figures['tokens_per_s']:,.0f} tokens/s"] if "tokens_per_s" in figures else []
    parts += [f"{figures['memory_bytes'] / 2**30:.1f} GB"] if "memory_bytes" in figures else []
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _board(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("training.tensorboard needs the package tensorboard; pip install 'luthier[track]', or leave it out") from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1 if done else None)
