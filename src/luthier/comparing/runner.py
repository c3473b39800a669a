"""Runs the cells of a grid: several take turns in one process, over one base.

A cell equals the same run alone to the bit: it has modules, an optimizer and a stream of its own, and random generators of its own, which are
put back before each of its turns. Whatever stops the grid, --resume goes on: finished cells stay, half ones go on from their checkpoints.
"""

import gc
import io
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from luthier.comparing.display import Display
from luthier.comparing.grid import Cell, Grid, made, metric_of, read_grid
from luthier.comparing.ledger import FILE, Ledger
from luthier.comparing.page import write
from luthier.comparing.read import read
from luthier.comparing.shared import Shared
from luthier.comparing.summary import Comparison
from luthier.comparing.summary import compare as compared
from luthier.config import RunFailed
from luthier.run import Result, Run, make, steps
from luthier.training import folder as folders
from luthier.training import random
from luthier.training.stop import Interrupted, Stop, watched


def compare(grid: Grid | str | Path, resume: bool = False, overrides: Sequence[str] = (), console: Console | None = None) -> Comparison:
    """Runs a grid, and writes table.json, table.csv, table.tex and report.html into its folder.

    grid: a grid file, or a Grid made in Python. resume: goes on in a folder that is there already. ValueError or OSError for what is wrong
    with the input, RunFailed where every cell failed, Interrupted after Ctrl-C (half cells have a checkpoint each).
    """
    grid, cells = (grid, made(grid)) if isinstance(grid, Grid) else read_grid(grid, overrides)
    folder = Path(grid.output).expanduser()
    check(folder, resume)
    runs = build(cells, folder)
    ledger = Ledger.begin(grid, cells, metric_of(grid, next(iter(runs.values()))))
    unchanged(ledger, runs)
    ledger.write()
    with watched() as stop, Display(len(cells), len(cells) - len(ledger.waiting()), console) as display:
        Turns(ledger, runs, Shared(), display, stop, grid.together or 1).go()
    failed = ledger.failed()
    if len(failed) == len(cells):
        raise RunFailed("every cell failed:\n" + "\n".join(f"{cell.name}: {ledger.entries[cell.name]['error']}" for cell in failed))
    found = compared(read([folder]))
    write(folder, found)
    return found


def check(folder: Path, resume: bool) -> None:
    """Refuses to write over something, or to resume what is no grid."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; output must be a folder")
    used = folder.is_dir() and any(folder.iterdir())
    if used and not resume:
        raise FileExistsError(f"{folder} is not empty; go on there with --resume, or choose another output")
    if used and not (folder / FILE).is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a grid ({FILE} is missing); choose another output")


def build(cells: Sequence[Cell], folder: Path) -> dict[str, Run]:
    """The run of each cell, its plug-ins made. ValueError with everything that is wrong with any of them."""
    runs, wrong = {}, []
    for cell in cells:
        try:
            runs[cell.name] = run = cell.run(folder)
            make("tuning", run.tuning), make("objectives", run.objective), [make("evaluation", each) for each in run.evaluation]
        except ValueError as error:
            wrong.append(f"{cell.method}: {error}")
    if wrong:
        raise ValueError("\n".join(dict.fromkeys(wrong)))
    return runs


def unchanged(ledger: Ledger, runs: dict[str, Run]) -> None:
    """Refuses to go on with other settings than the cells began with. A finished cell that is to be longer is waiting again."""
    told = []
    for cell in ledger.cells:
        there = ledger.place(cell)
        if (there / folders.CONFIG).is_file():
            changed = folders.changes(there, runs[cell.name].settings(), without=("objective.labels",))
            told += [f"{cell.name}: {change}" for key, change in changed.items() if not folders.free(key)]
            if any(key in ("training.steps", "training.epochs", "training.result") for key in changed):
                ledger.entries[cell.name]["state"] = "waiting"
    if told:
        raise ValueError(
            f"{ledger.folder}: the grid was started with other settings:\n"
            + "\n".join(told)
            + "\nchange them back, or choose another output"
        )


@dataclass
class Turn:
    """A run at work. random: its generators, as its last turn left them."""

    cell: Cell
    going: Generator[dict[str, Any], None, Result]
    random: dict[str, Any] | None = None

    def next(self) -> dict[str, Any]:
        if self.random is not None:
            random.restore(self.random)
        line = next(self.going)
        self.random = random.state()
        return line


@dataclass
class Turns:
    """Cells that take turns, at most `together` at once."""

    ledger: Ledger
    runs: dict[str, Run]
    shared: Shared
    display: Display
    stop: Stop
    together: int

    def go(self) -> None:
        waiting, working, stopped = self.ledger.waiting(), [], []
        while working or (waiting and not self.stop.asked):
            while waiting and len(working) < self.together and not self.stop.asked:
                working.append(self.begin(waiting.pop(0)))
            for turn in list(working):
                try:
                    self.display.step(turn.cell.name, turn.next())
                    continue
                except StopIteration as end:
                    self.done(turn, end.value)
                except Interrupted as stop:
                    stopped.append(f"{turn.cell.name}: {stop}")
                except Exception as error:  # whatever a cell runs into is its own
                    self.failed(turn, error)
                working.remove(turn)
                turn.going.close()
                del turn
                gc.collect()
        if self.stop.asked:
            raise Interrupted(f"stopped; {len(self.ledger.waiting())} of {len(self.ledger.cells)} cells are left; go on with --resume")

    def begin(self, cell: Cell) -> Turn:
        place = self.ledger.place(cell)
        resume = "auto" if (place / folders.CONFIG).is_file() else None
        console = Console(file=io.StringIO(), quiet=True)  # the display shows it
        return Turn(cell, steps(self.runs[cell.name], resume, make_ready=self.shared.ready, console=console, stop=self.stop))

    def done(self, turn: Turn, result: Result) -> None:
        self.ledger.note(turn.cell, state="done", error=None)
        figures = (result.history.after if result.history else None) or {}
        words = "  ".join(f"{name} {value:.4f}" for name, value in figures.items() if name in ("loss", self.ledger.metric))
        self.display.end(turn.cell.name, f"done  {words}")

    def failed(self, turn: Turn, error: Exception) -> None:
        told = str(error) if isinstance(error, ValueError | OSError | RunFailed) else f"{type(error).__name__}: {error}"
        self.ledger.note(turn.cell, state="failed", error=told)
        self.display.end(turn.cell.name, f"failed: {told}")
