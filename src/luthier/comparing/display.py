"""What is seen of a grid while it runs: one line for each run at work, one for the whole; plain lines when not a terminal."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINES = 5  # of one run, without a terminal


class Display:
    """A context; cells go by their names."""

    def __init__(self, cells: int, done: int = 0, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.cells, self.done, self.begun = cells, done, time.monotonic()
        self.known = done
        self.parts: dict[str, float] = {}  # of the runs at work: the share of their steps that is behind
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True), console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.whole = self.bar.add_task("cells", total=cells, completed=done, figures="")
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def step(self, name: str, line: dict[str, Any]) -> None:
        """A run has made a step."""
        step, steps = line["step"], line["steps"]
        self.parts[name] = step / steps
        figures = f"loss {line['loss']:.4f}" + (f"  held-out {line['held_out']:.4f}" if "held_out" in line else "")
        if name not in self.tasks:
            self.tasks[name] = self.bar.add_task(name, total=steps, figures="")
        self.bar.update(self.tasks[name], completed=step, figures=figures)
        if not self.console.is_terminal and step % max(1, steps // LINES) == 0:
            self.say(f"{name}  step {step}/{steps}  {figures}{self.left()}")

    def end(self, name: str, words: str) -> None:
        """A run is over, one way or the other."""
        self.done += 1
        self.parts.pop(name, None)
        if name in self.tasks:
            self.bar.remove_task(self.tasks.pop(name))
        self.bar.update(self.whole, completed=self.done)
        self.say(f"{name}  {words}  ({self.done} of {self.cells} cells{self.left()})")

    def left(self) -> str:
        """The time that the rest takes, if it goes on like this."""
        behind = self.done - self.known + sum(self.parts.values())
        if behind < 0.2 or self.done == self.cells:
            return ""
        seconds = round((time.monotonic() - self.begun) / behind * (self.cells - self.known - behind))
        return f"  about {seconds // 60}:{seconds % 60:02} left"

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)
