"""Two processes that take turns: A B A B. Each answers one line of JSON to "go", so that both are loaded and only one works at a time."""

import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


class Side:
    """A side in its own process: `python -m benchmarks.sides.NAME ARGUMENTS`."""

    def __init__(self, name: str, arguments: Sequence[str], python: str = sys.executable, threads: int | None = None):
        self.name = name
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"OMP_NUM_THREADS": str(threads or os.cpu_count())}
        command = [python, "-m", f"benchmarks.sides.{name}", *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.ready = self._answer()

    def round(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.communicate("stop\n", timeout=60)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with code {self.process.wait()}; its message is above")
        return json.loads(line)


def serve(ready: dict[str, Any], work: Callable[[], dict[str, Any]]) -> None:
    """The side's own end: say ready, then work at each "go"; what libraries print goes to stderr."""
    out, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(ready), file=out, flush=True)
    for line in sys.stdin:
        if line.strip() != "go":
            return
        print(json.dumps(work() | {"peak_bytes": peak_bytes()}), file=out, flush=True)


def peak_bytes() -> int:
    """The largest resident memory of this process so far. Not getrusage's, which begins with that of the process that started this one.

    luthier.training.memory tells the same; the peers' sides import nothing of ours.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def interleaved(sides: Sequence[Side], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """The answers of each side, by its name."""
    answers: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            answers[side.name].append(side.round())
    for side in sides:
        side.close()
    return answers


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; figures are written as they come."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def keep(name: str, text: str) -> None:
    """Print a result and write it to results/NAME.md."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
