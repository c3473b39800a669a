"""A grid that takes seconds: methods over the tiny run."""

from pathlib import Path
from typing import Any

import yaml

from tinyrun import values

METHODS: dict[str, Any] = {
    "lora": {"kind": "lora", "roles": ["q", "v", "up"], "rank": 2, "dropout": 0.1},
    "last": {"kind": "freeze", "blocks": "last 1"},
    "full": "full",
}


def write_grid(folder: Path, run_changes: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A grid of a tiny run. run_changes: sections of the run, as for tinyrun.values."""
    sections = values(folder, **{"training": {"steps": 3}, "data": {"held_out": 3}, **(run_changes or {})})
    sections.pop("tuning")
    (folder / "run.yaml").write_text(yaml.safe_dump(sections))
    grid = {"run": "run.yaml", "output": str(folder / "grid"), "methods": METHODS, "latency": False, **changes}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    return path
