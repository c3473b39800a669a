"""What the papers' claims share: data sets as rows, runs that are done once, figures with their spread and intervals."""

import csv
import json
import math
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.run import Run, run

RUNS = Path(os.environ.get("LUTHIER_RUNS", "runs/claims"))  # runs, kept: a script started again goes on where it was
RESULTS = Path(__file__).parents[1] / "results"
RESAMPLES = 2000
WORDS = ("DESC", "ENTY", "ABBR", "HUM", "NUM", "LOC")  # TREC's classes 0 to 5


def source(name: str) -> Path:
    """A file of the shared data sets."""
    if "LUTHIER_DATA" not in os.environ:
        raise SystemExit("LUTHIER_DATA is not set: name the folder with sst2, trec, wikiann_en_de_nl ... in it")
    return Path(os.environ["LUTHIER_DATA"]) / name


def labelled(name: str) -> list[dict]:
    """Rows of a set of lines "label text"."""
    lines = source(name).read_text(encoding="utf-8", errors="replace").splitlines()
    return [{"label": line[0], "text": line[2:].strip()} for line in lines if line.strip()]


def table(name: str, columns: dict[str, int | str], head: bool = True) -> list[dict]:
    """Rows of a tab-separated file, our name: its column."""
    with source(name).open(encoding="utf-8") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = lines.pop(0) if head else []
    places = {ours: names.index(theirs) if isinstance(theirs, str) else theirs for ours, theirs in columns.items()}
    return [{ours: line[place] for ours, place in places.items()} for line in lines if len(line) > max(places.values())]


def tagged(name: str) -> list[dict]:
    """Rows of a file with one "token, tab, tag" a line and an empty line between sentences."""
    blocks = source(name).read_text(encoding="utf-8").strip().split("\n\n")
    pairs = [[line.split("\t") for line in block.splitlines()] for block in blocks]
    return [{"tokens": [token for token, _ in row], "tags": [tag for _, tag in row]} for row in pairs]


def sample(rows: Sequence[dict], count: int, seed: int = 0) -> list[dict]:
    """So many of the rows, the same ones for the same seed."""
    return random.Random(f"rows {seed}").sample(list(rows), min(count, len(rows)))


def write(path: Path, rows: Sequence[dict]) -> Path:
    """Rows as a file of lines of JSON, written once."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


def stage(folder: Path, **sections: Any) -> dict:
    """A run, done once and taken up where it was interrupted; its result.json."""
    if not (folder / "result.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        (folder.parent / f"{folder.name}.yaml").write_text(json.dumps({**sections, "output": str(folder)}, indent=1), encoding="utf-8")
        run(Run.from_yaml(folder.parent / f"{folder.name}.yaml"), resume="auto")
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def remembered(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` returns, as JSON; made once."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make()), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def spread(values: Sequence[float]) -> str:
    """Mean and standard error over seeds, in percent; of a single one itself."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{100 * mean:.1f}"
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return f"{100 * mean:.1f} ± {100 * error:.1f}"


def interval(count: int, statistic: Callable[[np.ndarray], float]) -> tuple[float, float, float]:
    """A statistic of rows (by their numbers) and the ends of its 95 % interval by the bootstrap over rows."""
    rng = np.random.default_rng(0)
    drawn = sorted(statistic(rng.integers(0, count, count)) for _ in range(RESAMPLES))
    return statistic(np.arange(count)), drawn[int(0.025 * RESAMPLES)], drawn[int(0.975 * RESAMPLES)]


def told(found: tuple[float, float, float]) -> str:
    """A difference with its interval, in points."""
    value, low, high = (100 * part for part in found)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
