"""A grid: its cells equal runs alone, it goes on after a stop, and a cell that fails does not end it."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import luthier
from luthier.comparing import turns
from luthier.comparing.grid import Cell, Grid
from luthier.comparing.grid_file import read_grid
from luthier.comparing.runner import compare
from luthier.comparing.search import Search
from luthier.config import RunFailed
from luthier.objectives import _batch
from luthier.run import Run, base, run
from luthier.training.stop import Interrupted, Stop
from tinygrid import METHODS, write_grid
from tinyrun import write_run

MORE: dict[str, Any] = {
    "prefix": {"kind": "prefix", "length": 2, "start": "lute"},
    "norm": {"kind": "freeze", "blocks": [], "also_train": ["norm"]},
    "adalora": {"kind": "adalora", "rank": 3, "target": 2, "warmup": 1, "final": 1},
    "qlora": {"kind": "qlora", "rank": 2, "base": "int8"},
    "dora": {"kind": "lora", "rank": 2, "dora": True, "start": "pissa"},
    "both": [{"kind": "prompt", "length": 2}, {"kind": "lora", "rank": 2}],
    "grown": [{"kind": "ia3"}, {"kind": "lora", "rank": 2, "tokens": ["lute"]}],
}


def stored(folder: Path) -> str:
    """The tiny model as a folder of weights: making a fresh one takes random numbers, reading this one none."""
    base(Run.from_yaml(write_run(folder, model={"dropout": 0.1}))).save(folder / "base")
    return str(folder / "base")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("adapter/**/*.safetensors")) + sorted(folder.glob("model/*.safetensors"))
    return {f"{path.relative_to(folder)}/{name}": value for path in files for name, value in load_file(path).items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("tokens_per_s", "memory_bytes")} for line in found]


def entries(path: Path) -> dict[str, dict[str, Any]]:
    grid = json.loads((Path(yaml.safe_load(path.read_text())["output"]) / "grid.json").read_text())
    return {entry["folder"]: entry for entry in grid["cells"]}


def cells_of(path: Path) -> list[Cell]:
    return read_grid(path)[1]


def same(there: Path, here: Path) -> None:
    """Every figure of every step, the weights and the predictions."""
    assert lines(there) == lines(here), there
    ours, theirs = weights(there), weights(here)
    assert ours.keys() == theirs.keys() and ours, there
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), there
    assert (there / "predictions.jsonl").read_bytes() == (here / "predictions.jsonl").read_bytes(), there


def same_as_alone(path: Path, folder: Path, chosen: dict[str, Any] | None = None) -> None:
    """Each cell of a finished grid against the same run without a grid."""
    grid, cells = read_grid(path)
    for cell in cells:
        here = folder / "alone" / cell.name
        run(replace(cell.run(Path(grid.output), chosen), output=str(here)))
        same(Path(grid.output) / "cells" / cell.name, here)


@pytest.mark.parametrize(
    "fresh, together, methods",
    [
        (False, 0, METHODS),
        pytest.param(True, 0, METHODS, marks=pytest.mark.slow),
        pytest.param(False, 1, METHODS, marks=pytest.mark.slow),
        pytest.param(False, 0, MORE, marks=pytest.mark.slow),
    ],
    ids=["in turns", "fresh", "one by one", "more methods"],
)
def test_a_cell_equals_the_same_run_alone_to_the_bit(tmp_path: Path, fresh: bool, together: int, methods: dict[str, Any]) -> None:
    """With dropout in the model and in a method, in turns or one after the other, the base read from a folder or made by each seed."""
    changes = {"model": {"dropout": 0.1} if fresh else stored(tmp_path), "training": {"steps": 7 if methods is not METHODS else 3}}
    seeds = [0, 1] if fresh or together else [1]
    path = write_grid(tmp_path, changes, methods=methods, seeds=seeds, together=together)
    found = compare(path)
    assert {method.name for method in found.methods} == set(methods)
    same_as_alone(path, tmp_path)


def test_the_folder_of_a_grid(tmp_path: Path) -> None:
    found = luthier.compare(Grid.from_yaml(write_grid(tmp_path), ["latency=true"]))
    folder = tmp_path / "grid"
    assert {path.name for path in folder.iterdir()} == {"cells", "grid.json", "table.json", "table.csv", "table.tex", "report.html"}
    grid = json.loads((folder / "grid.json").read_text())
    assert grid["metric"] == "loss"
    assert [(cell["folder"], cell["state"], cell["error"]) for cell in grid["cells"]] == [
        (f"{name}-seed0", "done", None) for name in METHODS
    ]
    assert found.metric == "loss"
    for name in METHODS:
        result = json.loads((folder / "cells" / f"{name}-seed0" / "result.json").read_text())
        made = folder / "cells" / f"{name}-seed0" / result["path"]
        assert result["artefact_bytes"] == sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
        assert result["latency"]["base"] > 0 and result["latency"]["unmerged"] > 0
        assert (result["latency"]["merged"] is None) == (name == "full")
        assert result["memory_bytes"] > 2**20


def test_texts_become_tokens_once_for_all_runs_of_a_seed(tmp_path: Path, monkeypatch) -> None:
    made: list[tuple[int, ...]] = []
    own = _batch._encoded
    monkeypatch.setattr(_batch, "_encoded", lambda *args: made.append(tuple(sample.index for sample in args[1])) or own(*args))
    counts = []
    for methods in ({"full": "full"}, METHODS):
        path = write_grid(tmp_path, {"model": stored(tmp_path)}, methods=methods, output=str(tmp_path / f"grid{len(methods)}"))
        made.clear()
        compare(path)
        assert len(made) == len(set(made))  # held-out rows too, however often they are measured
        counts.append(len(made))
    assert counts[0] == counts[1]


def test_axes_make_cells_for_the_methods_that_have_them(tmp_path: Path) -> None:
    path = write_grid(tmp_path, methods={"lora": "lora", "full": "full"}, vary={"tuning.rank": [1, 2]})
    compare(path)
    found = entries(path)
    assert {name: entry["point"] for name, entry in found.items()} == {
        "lora-rank1-seed0": {"tuning.rank": 1},
        "lora-rank2-seed0": {"tuning.rank": 2},
        "full-seed0": {},
    }
    sizes = [len(weights(tmp_path / "grid" / "cells" / f"lora-rank{rank}-seed0")) for rank in (1, 2)]
    assert sizes[0] == sizes[1] > 0


# What does not go well


def test_a_cell_that_fails_is_told_and_the_others_are_done(tmp_path: Path) -> None:
    path = write_grid(tmp_path, methods={"lora": {"kind": "lora", "roles": ["cross.q"]}, "last": METHODS["last"]})
    found = compare(path)
    assert [method.name for method in found.methods] == ["last"]
    assert [(cell.method, "has the role 'cross.q'" in (cell.error or "")) for cell in found.failed] == [("lora", True)]
    assert {name: entry["state"] for name, entry in entries(path).items()} == {"lora-seed0": "failed", "last-seed0": "done"}


def test_where_every_cell_fails_the_grid_has_failed(tmp_path: Path) -> None:
    path = write_grid(tmp_path, methods={"lora": {"kind": "lora", "roles": ["cross.q"]}})
    with pytest.raises(RunFailed, match=r"every cell failed:\nlora-seed0: no block of .* has the role 'cross.q'"):
        compare(path)
    path = write_grid(tmp_path, methods={"lora": {"kind": "lora", "roles": ["cross.q"]}, "full": "full"})
    compare(path, resume=True)  # what failed is tried again, what is new is done
    assert {name: entry["state"] for name, entry in entries(path).items()} == {"lora-seed0": "failed", "full-seed0": "done"}


def test_a_grid_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_grid(tmp_path, methods={"lora": METHODS["lora"], "full": "full"}, seeds=[0, 1])
    taken, stops = [0], []
    keep, took = Stop.__init__, turns.Turns.took

    def noted(self: Stop, *args: Any) -> None:
        keep(self, *args)
        stops.append(self)

    def counted(self: turns.Turns, turn: turns.Turn) -> bool:
        taken[0] += 1
        stops[0].asked = stops[0].asked or taken[0] == 4  # in the second step of the second run
        return took(self, turn)

    with monkeypatch.context() as patch:
        patch.setattr(Stop, "__init__", noted)
        patch.setattr(turns.Turns, "took", counted)
        with pytest.raises(Interrupted, match="4 of 4 cells are left; go on with --resume"):
            compare(path)
    checkpoints = sorted(
        each.relative_to(tmp_path / "grid" / "cells").as_posix() for each in (tmp_path / "grid").glob("cells/*/checkpoints/*")
    )
    assert checkpoints == ["full-seed0/checkpoints/step-1", "lora-seed0/checkpoints/step-2"]
    with pytest.raises(FileExistsError, match="grid is not empty; go on there with --resume, or choose another output"):
        compare(path)
    compare(path, resume=True)
    same_as_alone(path, tmp_path)
    before = {each: each.stat().st_mtime_ns for each in (tmp_path / "grid").glob("cells/*/result.json")}
    compare(path, resume=True)
    assert {each: each.stat().st_mtime_ns for each in before} == before  # what is done stays


def test_going_on_with_other_settings_names_each(tmp_path: Path) -> None:
    compare(write_grid(tmp_path, methods={"lora": METHODS["lora"]}))
    path = write_grid(tmp_path, methods={"lora": {**METHODS["lora"], "rank": 3}}, set={"training.rate": 0.5})
    told = r"other settings; change them back.*\nlora-seed0: training.rate was 0.01 and is 0.5\nlora-seed0: tuning.rank was 2 and is 3"
    with pytest.raises(ValueError, match=told):
        compare(path, resume=True)


def test_more_seeds_and_more_steps_are_added_to_what_is_there(tmp_path: Path) -> None:
    methods, schedule = {"lora": METHODS["lora"]}, {"training.schedule": "constant"}
    compare(write_grid(tmp_path, methods=methods, set=schedule))
    path = write_grid(tmp_path, methods=methods, set={**schedule, "training.steps": 5}, seeds=[0, 1])
    compare(path, resume=True)
    grown = tmp_path / "grid" / "cells" / "lora-seed0"
    assert [line["step"] for line in lines(grown)] == list(range(6))
    run(replace(cells_of(path)[0].run(tmp_path), output=str(tmp_path / "alone")))
    assert all(torch.equal(value, weights(tmp_path / "alone")[name]) for name, value in weights(grown).items())
    assert len(lines(tmp_path / "grid" / "cells" / "lora-seed1")) == 6


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = write_grid(tmp_path)
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="grid is not empty"):
        compare(path)
    with pytest.raises(FileNotFoundError, match=r"grid is not the folder of a grid \(grid.json is missing\)"):
        compare(path, resume=True)


def test_a_value_that_does_not_do_is_told_before_anything_runs(tmp_path: Path) -> None:
    path = write_grid(tmp_path, methods={"lora": {"kind": "lora", "rank": 0}, "prompt": {"kind": "prompt", "length": 0}})
    with pytest.raises(ValueError, match=r"lora: a rank is 1 at least.*\nprompt: prompt needs length >= 1"):
        compare(path)
    assert not (tmp_path / "grid").exists()


# Search


def test_a_search_takes_what_did_best_on_training_rows_it_held_out(tmp_path: Path) -> None:
    search = {"training.rate": [1e-4, 0.02], "share": 0.2}
    path = write_grid(
        tmp_path, methods={"lora": METHODS["lora"], "full": {"kind": "full", "set": {"training.clip": 0.5}}}, search=search, seeds=[0, 1]
    )
    found = compare(path)
    grid = json.loads((tmp_path / "grid" / "grid.json").read_text())
    assert grid["budget"] == {"trials": {"lora": 2, "full": 2}, "on": "loss", "share": 0.2, "seeds": [0]}
    for entry in grid["cells"]:
        assert [trial["point"] for trial in entry["trials"]] == [{"training.rate": 1e-4}, {"training.rate": 0.02}]
        best = min(entry["trials"], key=lambda trial: trial["loss"])
        assert entry["chosen"] == best["point"] == {"training.rate": 0.02}
        settings = yaml.safe_load((tmp_path / "grid" / "cells" / entry["folder"] / "config.yaml").read_text())
        assert settings["training"]["rate"] == 0.02 and settings["data"]["validation"] is None
        trial = yaml.safe_load((tmp_path / "grid" / best["folder"] / "config.yaml").read_text())
        assert trial["data"]["validation"] == 0.2 and trial["seed"] == 0
    assert all(method.chosen == {"training.rate": 0.02} for method in found.methods)
    same_as_alone(path, tmp_path, {"training.rate": 0.02})
    before = {each: each.stat().st_mtime_ns for each in (tmp_path / "grid").glob("*/*/result.json")}
    compare(path, resume=True)
    assert {each: each.stat().st_mtime_ns for each in before} == before


def test_a_search_under_several_seeds_takes_what_is_best_on_average(tmp_path: Path) -> None:
    search = {"training.rate": [1e-4, 0.02], "share": 0.2, "seeds": 2}
    path = write_grid(tmp_path, methods={"lora": METHODS["lora"]}, search=search, seeds=[0, 1])
    compare(path)
    for entry in entries(path).values():
        tried = [(trial["point"]["training.rate"], trial["seed"]) for trial in entry["trials"]]
        assert tried == [(1e-4, 0), (1e-4, 1), (0.02, 0), (0.02, 1)]
        runs = [yaml.safe_load((tmp_path / "grid" / trial["folder"] / "config.yaml").read_text()) for trial in entry["trials"]]
        assert [(run["training"]["rate"], run["seed"]) for run in runs] == tried
        assert len({trial["loss"] for trial in entry["trials"]}) == 4
    assert sorted(each.name for each in (tmp_path / "grid" / "trials").iterdir()) == [
        f"lora-seed0-trial{number}{beside}" for number in (0, 1) for beside in ("", "-seed1")
    ]
    grid, (cell, _) = read_grid(path)
    told = Search(grid, cell, tmp_path)
    told.next()
    for losses, chosen in [((0.5, 0.5, 0.1, 1.0), 0.0001), ((0.5, 0.5, 0.1, 0.7), 0.02), ((0.5, 0.5, 0.1, math.nan), 0.0001)]:
        for trial, loss in zip(told.trials, losses, strict=True):
            trial["loss"] = loss
        assert told.chosen == {"training.rate": chosen}


def test_more_points_than_trials_are_sampled_alike_for_every_method(tmp_path: Path) -> None:
    search = {"training.rate": [1e-4, 1e-3, 1e-2], "training.clip": [0.5, 1.0], "trials": 2}
    path = write_grid(tmp_path, methods={"lora": METHODS["lora"], "full": "full"}, search=search)
    compare(path)
    points = [[trial["point"] for trial in entry["trials"]] for entry in entries(path).values()]
    assert points[0] == points[1] and len(points[0]) == 2


def test_where_every_trial_fails_the_cells_say_so(tmp_path: Path) -> None:
    methods = {"lora": {"kind": "lora", "roles": ["cross.q"]}, "full": "full"}
    found = compare(write_grid(tmp_path, methods=methods, search={"training.rate": [1e-3, 1e-2]}))
    assert [method.name for method in found.methods] == ["full"]
    assert (found.failed[0].error or "").startswith("every trial of the search failed: no block of")


def test_a_search_over_a_range_asks_for_optuna(tmp_path: Path) -> None:
    if importlib.util.find_spec("optuna"):
        pytest.skip("optuna is installed")
    path = write_grid(tmp_path, search={"training.rate": {"low": 1e-4, "high": 1e-2, "log": True}, "trials": 2})
    with pytest.raises(ValueError, match=r"needs the package optuna; pip install 'luthier\[search\]', or give lists"):
        compare(path)


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_search_over_a_range_goes_from_trial_to_trial(tmp_path: Path, seeds: int) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed")
    search = {"training.rate": {"low": 1e-4, "high": 1e-2, "log": True}, "trials": 3, "seeds": seeds}
    compare(path := write_grid(tmp_path, methods={"lora": METHODS["lora"]}, search=search, seeds=[0, 1]))
    entry = next(iter(entries(path).values()))
    rates = [trial["point"]["training.rate"] for trial in entry["trials"]]
    assert len(rates) == 3 * seeds and len(set(rates)) == 3 and all(1e-4 <= rate <= 1e-2 for rate in rates)
    losses = {rate: sum(t["loss"] for t in entry["trials"] if t["point"]["training.rate"] == rate) for rate in rates}
    assert entry["chosen"] == {"training.rate": min(losses, key=losses.__getitem__)}


# Elsewhere


@pytest.mark.slow
def test_cells_in_processes_of_their_own_are_the_same(tmp_path: Path) -> None:
    path = write_grid(tmp_path, methods={**METHODS, "bad": {"kind": "lora", "roles": ["cross.q"]}}, workers=2)
    found = compare(path)
    assert [cell.method for cell in found.failed] == ["bad"]
    path.write_text(path.read_text().replace("  bad:\n    kind: lora\n    roles:\n    - cross.q\n", ""))
    same_as_alone(path, tmp_path)


@pytest.mark.slow
def test_cells_as_ray_tasks_are_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    path = write_grid(tmp_path, methods={**METHODS, "bad": {"kind": "lora", "roles": ["cross.q"]}}, ray=True)
    found = compare(path)
    assert [cell.method for cell in found.failed] == ["bad"]
    path.write_text(path.read_text().replace("  bad:\n    kind: lora\n    roles:\n    - cross.q\n", ""))
    same_as_alone(path, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whatever_stops_the_command_it_goes_on_to_the_same_weights(tmp_path: Path, number: signal.Signals, workers: int) -> None:
    path = write_grid(
        tmp_path, {"training": {"steps": 60, "save_every": 5}}, methods={"lora": METHODS["lora"], "full": "full"}, workers=workers
    )
    command = [sys.executable, "-m", "luthier.cli.main", "compare", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list((tmp_path / "grid").glob("cells/*/checkpoints/step-5")):
        assert process.poll() is None
        time.sleep(0.05)
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)
    _, told = process.communicate()
    if number == signal.SIGTERM:
        assert process.returncode == 130 and "of 2 cells are left; go on with --resume" in told
    assert not (tmp_path / "grid" / "table.json").exists()
    compare(path, resume=True)
    same_as_alone(path, tmp_path)
