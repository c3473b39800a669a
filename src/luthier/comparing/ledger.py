"""grid.json: which cells a grid has and what became of each; written anew, whole or not at all, at every change. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.comparing.grid import Cell, Grid
from luthier.report import read_json
from luthier.training.folder import RESULT, write_json

FILE = "grid.json"


def check(folder: Path, resume: bool) -> None:
    """Refuses to write over something, or to resume what is no grid."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; output must be a folder")
    used = folder.is_dir() and any(folder.iterdir())
    if used and not resume:
        raise FileExistsError(f"{folder} is not empty; go on there with --resume, or choose another output")
    if used and not (folder / FILE).is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a grid ({FILE} is missing); choose another output")


@dataclass
class Ledger:
    """The cells in their order, each with its entry."""

    folder: Path
    cells: Sequence[Cell]
    metric: str
    budget: Mapping[str, Any] | None = None
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def begin(cls, grid: Grid, cells: Sequence[Cell], metric: str) -> "Ledger":
        """What a folder's grid.json says of these cells; those that failed are waiting again."""
        folder = Path(grid.output).expanduser()
        ledger = cls(folder, cells, metric)
        before = {each["folder"]: each for each in read_json(folder / FILE, {}).get("cells", [])}
        for cell in cells:
            fresh = {"method": cell.method, "seed": cell.seed, "point": dict(cell.point), "folder": cell.name, "state": "waiting"}
            known = before.get(cell.name, {})
            kept = {"trials": known.get("trials", []), "chosen": known.get("chosen")}
            done = known.get("state") == "done" and (ledger.place(cell) / RESULT).is_file()
            ledger.entries[cell.name] = {**fresh, "error": None, **kept} | ({"state": "done"} if done else {})
        return ledger

    def place(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.name

    def note(self, cell: Cell, **changes: Any) -> None:
        """Changes a cell's entry, and writes the file."""
        self.entries[cell.name] |= changes
        self.write()

    def write(self) -> None:
        cells = [self.entries[cell.name] for cell in self.cells]
        write_json(self.folder / FILE, {"cells": cells, "metric": self.metric, "budget": self.budget})

    def state(self, cell: Cell) -> str:
        return self.entries[cell.name]["state"]

    def waiting(self) -> list[Cell]:
        return [cell for cell in self.cells if self.state(cell) == "waiting"]

    def group(self, cell: Cell) -> list[Cell]:
        """The cells of the same method at the same point, one for each seed."""
        return [other for other in self.cells if (other.method, other.point) == (cell.method, cell.point)]

    def failed(self) -> list[Cell]:
        return [cell for cell in self.cells if self.state(cell) == "failed"]
