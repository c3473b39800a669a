"""Runs a grid: searches first where it searches, then every cell, then the table.

A cell equals the same run alone to the bit. Whatever stops the grid, resume goes on: finished cells stay, half ones go on from their
checkpoints, failed ones are tried again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from luthier.comparing import cluster
from luthier.comparing.cluster import Cluster
from luthier.comparing.display import Display
from luthier.comparing.grid import Cell, Grid, metric_of, searched
from luthier.comparing.grid_file import made, read_grid
from luthier.comparing.ledger import Ledger, check
from luthier.comparing.page import write
from luthier.comparing.processes import Processes
from luthier.comparing.read import read
from luthier.comparing.search import Search, budget, check_optuna
from luthier.comparing.shared import Shared
from luthier.comparing.summary import Comparison
from luthier.comparing.summary import compare as compared
from luthier.comparing.turns import Ended, Job, Line, Stepped, Turns
from luthier.config import RunFailed
from luthier.report import read_json
from luthier.run_file import Run, make
from luthier.training import folder as folders
from luthier.training.stop import Interrupted, Stop, watched


def compare(grid: Grid | str | Path, resume: bool = False, overrides: Sequence[str] = (), console: Console | None = None) -> Comparison:
    """Runs a grid, and writes table.json, table.csv, table.tex and report.html into its folder.

    grid: a grid file, or a Grid made in Python. resume: goes on in a folder that is there already. ValueError or OSError for what is wrong
    with the input, RunFailed where every cell failed, Interrupted after Ctrl-C (half cells have a checkpoint each).
    """
    return go(*((grid, made(grid)) if isinstance(grid, Grid) else read_grid(grid, overrides)), resume, console)


def go(grid: Grid, cells: Sequence[Cell], resume: bool = False, console: Console | None = None) -> Comparison:
    """`compare`, of a grid that has been read."""
    folder = Path(grid.output).expanduser()
    check(folder, resume)
    check_optuna(grid)
    if grid.ray:
        cluster.check()
    first = build(grid, cells, folder)
    ledger = Ledger.begin(grid, cells, metric_of(grid, first))
    with watched() as stop:
        Work(grid, ledger, stop, console).go()
    failed = ledger.failed()
    if len(failed) == len(cells):
        raise RunFailed("every cell failed:\n" + "\n".join(f"{cell.name}: {ledger.entries[cell.name]['error']}" for cell in failed))
    found = compared(read([folder]))
    write(folder, found)
    return found


def build(grid: Grid, cells: Sequence[Cell], folder: Path) -> Run:
    """The first run, after all of them were made with their plug-ins. ValueError with everything that is wrong with any of them."""
    runs, wrong = [], []
    lists = {key: values for key, values in searched(grid).items() if isinstance(values, list | tuple)}
    for cell in cells:
        try:
            search = Search(grid, cell, folder) if lists and cell.seed == grid.seeds[0] else None
            for point in (search.points if search else None) or [{}]:
                runs.append(cell.run(folder, point))
                for shelf, value in parts_of(runs[-1]):
                    make(shelf, value)
        except ValueError as error:
            wrong.append(f"{cell.method}: {error}")
    if wrong:
        raise ValueError("\n".join(dict.fromkeys(wrong)))
    return runs[0]


def parts_of(run: Run) -> list[tuple[str, Any]]:
    return [("tuning", run.tuning), ("objectives", run.objective), *(("evaluation", each) for each in run.evaluation)]


@dataclass
class Work:
    """What is to be done of a grid, in the order of events."""

    grid: Grid
    ledger: Ledger
    stop: Stop
    console: Console | None
    shared: Shared = field(default_factory=Shared)

    def go(self) -> None:
        searches = [Search(self.grid, cell, self.ledger.folder) for cell in self.to_search()]
        self.ledger.budget = budget(searches, self.grid) or self.ledger.budget
        runs = self.runs()
        self.ledger.write()
        cells = [cell for cell in self.ledger.cells if self.ledger.state(cell) == "waiting"]
        todo = [search for search in searches if any(cell in cells for cell in self.ledger.group(search.cell))]
        with Display(len(cells) + sum(search.count for search in todo), console=self.console) as display:
            self.search(todo, display)
            runs = self.runs()
            jobs = [Job(cell.name, runs[cell.name], self.grid.latency) for cell in cells if self.ledger.state(cell) == "waiting"]
            self.do(jobs, display.step, lambda name, error: self.ended(name, error, display))
        if self.stop.asked:
            left = len(self.ledger.waiting())
            raise Interrupted(f"stopped; {left} of {len(self.ledger.cells)} cells are left; go on with --resume")

    def to_search(self) -> list[Cell]:
        return [cell for cell in self.ledger.cells if self.grid.search and cell.seed == self.grid.seeds[0]]

    def runs(self) -> dict[str, Run]:
        """The run of each cell as it is known now. ValueError where one was begun with other settings."""
        entries = self.ledger.entries
        runs = {cell.name: cell.run(self.ledger.folder, entries[cell.name]["chosen"]) for cell in self.ledger.cells}
        told = []
        for cell in self.ledger.cells:
            there = self.ledger.place(cell)
            if (there / folders.CONFIG).is_file() and (not self.grid.search or entries[cell.name]["chosen"] is not None):
                changed = folders.changes(there, runs[cell.name].settings(), without=("objective.labels",))
                told += [f"{cell.name}: {words}" for key, words in changed.items() if not folders.free(key)]
                if changed.keys() & {"training.steps", "training.epochs", "training.result"}:
                    entries[cell.name]["state"] = "waiting"  # it is to be longer
        if told:
            told = [f"{self.ledger.folder}: the grid was started with other settings; change them back, or choose another output", *told]
            raise ValueError("\n".join(told))
        return runs

    def search(self, searches: Sequence[Search], display: Display) -> None:
        """Trials until all searches are over, then the chosen points go into the ledger."""
        owner: dict[str, Search] = {}

        def ended(name: str, error: str | None) -> None:
            owner[name].told(name, error)
            trial = next(each for each in owner[name].trials if each["folder"].endswith(f"/{name}"))
            display.end(
                name, words(trial["point"]) + (f"  loss {trial['loss']:.4f}" if trial["loss"] is not None else f"  failed: {error}")
            )

        while not self.stop.asked and (found := [(search, *trial) for search in searches for trial in search.next()]):
            owner |= {name: search for search, name, _ in found}
            jobs = []
            for _, name, run in found:
                job = Job(name, run)
                if finished(job):
                    ended(name, None)
                else:
                    jobs.append(job)
            self.do(jobs, display.step, ended)
        if self.stop.asked:
            return
        for search in searches:
            for cell in self.ledger.group(search.cell):
                chosen = search.chosen
                why = "; ".join(dict.fromkeys(str(trial.get("error")) for trial in search.trials))
                failed = {"state": "failed", "error": f"every trial of the search failed: {why}"} if chosen is None else {}
                self.ledger.note(cell, trials=search.trials, chosen=chosen, **failed)
                if failed:
                    display.end(cell.name, f"failed: {failed['error']}")

    def do(self, jobs: Sequence[Job], stepped: Stepped, ended: Ended) -> None:
        if self.grid.ray:
            Cluster(self.stop, ended).go(jobs)
        elif self.grid.workers > 1 and len(jobs) > 1:
            Processes(self.stop, self.grid.workers, stepped, ended).go(jobs)
        else:
            Turns(self.stop, self.grid.together, stepped, ended, self.shared).go(jobs)

    def ended(self, name: str, error: str | None, display: Display) -> None:
        cell = next(cell for cell in self.ledger.cells if cell.name == name)
        self.ledger.note(cell, state="done" if error is None else "failed", error=error)
        figures: Line = read_json(self.ledger.place(cell) / folders.RESULT, {}).get("after") or {}
        shown = "  ".join(f"{key} {value:.4f}" for key, value in figures.items() if key in ("loss", self.ledger.metric))
        display.end(name, f"done  {shown}" if error is None else f"failed: {error}")


def finished(job: Job) -> bool:
    """Whether a run is over already, with these settings."""
    if not (job.folder / folders.RESULT).is_file() or not (job.folder / folders.CONFIG).is_file():
        return False
    return not folders.changes(job.folder, job.run.settings(), without=("objective.labels",))


def words(point: dict) -> str:
    return ", ".join(
        f"{key.rpartition('.')[2]} {value:g}" if isinstance(value, float) else f"{key.rpartition('.')[2]} {value}"
        for key, value in point.items()
    )
