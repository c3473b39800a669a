"""What finished runs and grids look like to `luthier compare`, and what it says of broken ones."""

import json
from pathlib import Path

import pytest

from finished import predicted, write_grid, write_json, write_lines, write_run
from luthier.comparing.read import read
from luthier.comparing.summary import compare


def test_runs_that_differ_in_the_seed_alone_are_one_method(tmp_path: Path):
    folders = [write_run(tmp_path / f"{kind}-seed{seed}", seed, tuning=kind) for kind in ("lora", "ia3") for seed in (0, 1)]
    found = read(folders)
    assert [(cell.name, cell.seed) for cell in found.cells] == [("lora", 0), ("lora", 1), ("ia3", 0), ("ia3", 1)]


def test_runs_of_two_settings_are_two_methods(tmp_path: Path):
    folders = [write_run(tmp_path / f"run{i}", i, settings={"tuning": {"kind": "lora", "rank": 4 * (i + 1)}}) for i in range(2)]
    assert [cell.name for cell in read(folders).cells] == ["run0", "run1"]


def test_the_same_settings_and_seed_twice_are_two_methods(tmp_path: Path):
    assert [cell.name for cell in read([write_run(tmp_path / "a"), write_run(tmp_path / "b")]).cells] == ["a", "b"]


def test_folders_of_one_name_keep_their_parents(tmp_path: Path):
    folders = [write_run(tmp_path / where / "lora", tuning=where) for where in ("x", "y")]
    assert [cell.name for cell in read(folders).cells] == ["x/lora", "y/lora"]


def test_a_folder_named_twice_is_read_once(tmp_path: Path):
    folder = write_run(tmp_path / "a")
    assert len(read([folder, f"{folder}/"]).cells) == 1


def test_a_grid_has_methods_points_failures_and_what_waits(tmp_path: Path):
    grid = write_grid(tmp_path / "g", {"probe": {}, "lora": {"point": {"tuning.rank": 4}}, "prompt": {"error": "too long"}}, seeds=[0, 1])
    values = json.loads((grid / "grid.json").read_text())
    values["cells"].append({"method": "ia3", "seed": 0, "point": {}, "folder": "cells/x", "state": "waiting", "error": None})
    write_json(grid / "grid.json", values)
    found = read([grid])
    assert [cell.name for cell in found.cells] == ["probe", "probe", "lora rank=4", "lora rank=4", "prompt", "prompt"]
    assert [cell.error for cell in found.cells] == [None] * 4 + ["too long"] * 2
    assert found.waiting == ("ia3, seed 0",)
    assert found.metric == "accuracy"


def test_a_cell_that_two_grids_have_is_no_second_seed(tmp_path: Path):
    one, two = (write_grid(tmp_path / name, {"lora": {}, **more}, seeds=[0, 1]) for name, more in (("g", {"ia3": {}}), ("h", {})))
    later = write_grid(tmp_path / "later", {"ia3": {}}, seeds=[2])
    assert {(cell.name, cell.seed) for cell in read([one, later]).cells if cell.method == "ia3"} == {("ia3", seed) for seed in range(3)}
    names = [cell.name for cell in read([one, two]).cells]
    assert names == ["g/lora", "g/lora", "ia3", "ia3", "h/lora", "h/lora"]


def test_a_broken_cell_of_a_grid_is_a_failure_not_the_end(tmp_path: Path):
    grid = write_grid(tmp_path / "g", {"probe": {}, "lora": {}}, seeds=[0])
    broken = grid / "cells" / "1-0" / "result.json"
    broken.write_text('{"steps": ')
    failed = compare(read([grid])).failed
    assert [cell.name for cell in failed] == ["lora"]
    assert str(broken) in str(failed[0].error)


def broken(folder: Path, how: str) -> Path:
    path = folder / how.replace(" ", "-")
    if how == "a file":
        path.write_text("x")
    elif how == "empty":
        path.mkdir()
    elif how == "around runs":
        write_run(path / "inner")
    elif how != "missing":
        write_run(path)
    if how == "unfinished":
        (path / "result.json").unlink()
    texts = {"torn result": "{", "a list": "[]", "bytes": b"\xff\xfe{", "after a number": '{"after": 3}'}
    if how in texts:
        (path / "result.json").write_bytes(texts[how] if isinstance(texts[how], bytes) else texts[how].encode())
    if how == "bad yaml":
        (path / "config.yaml").write_text("a: [")
    if how == "bad grid":
        (path / "grid.json").write_text('{"cells": [{"method": "a"}]}')
    return path


BROKEN = {
    "missing": "no such folder",
    "a file": "is a file",
    "empty": "neither a run (result.json) nor a grid (grid.json)",
    "around runs": "runs lie in it: inner",
    "unfinished": "has not finished",
    "torn result": "result.json:1: not JSON",
    "a list": "must hold one object",
    "bytes": "not UTF-8",
    "after a number": '"after" must hold figures',
    "bad yaml": "not YAML",
    "bad grid": '"cells" must be a list',
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_is_told_in_a_sentence_with_its_path(tmp_path: Path, how: str):
    path = broken(tmp_path, how)
    with pytest.raises(ValueError) as caught:
        read([path])
    assert str(path) in str(caught.value)
    assert BROKEN[how] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_broken_folders_are_told_at_once(tmp_path: Path):
    with pytest.raises(ValueError) as caught:
        read([broken(tmp_path, "missing"), write_run(tmp_path / "good"), broken(tmp_path, "empty")])
    assert len(str(caught.value).splitlines()) == 2


def test_figures_that_are_no_numbers_are_left_out(tmp_path: Path):
    folder = write_run(tmp_path / "a", result={"after": {"step": 3, "loss": 0.5, "pearson": float("nan"), "bleu": None}})
    assert read([folder]).cells[0].figures == {"loss": 0.5}


def test_a_last_line_torn_by_a_killed_process_is_left_out(tmp_path: Path):
    folder = write_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "lo')
    assert read([folder]).cells[0].metrics()[-1]["step"] == 30


def test_broken_predictions_cost_the_test_not_the_table(tmp_path: Path):
    folders = [write_run(tmp_path / name, tuning=name) for name in ("a", "b")]
    lines = (folders[1] / "predictions.jsonl").read_text().splitlines()
    (folders[1] / "predictions.jsonl").write_text("\n".join([lines[0], "{", *lines[1:]]))
    found = compare(read(folders))
    other = next(each for each in found.methods if each.name == "b")
    assert other.against is None
    assert "predictions.jsonl:2: not a JSON object" in other.reason


def test_rows_are_told_apart_by_the_file_they_come_from(tmp_path: Path):
    """Other training rows leave the held-out file what it is; another held-out file does not."""
    one = write_run(tmp_path / "one")
    two = write_run(tmp_path / "two", settings={"data": {"path": "more.jsonl", "held_out": "test.jsonl", "length": 64}}, tuning="ia3")
    three = write_run(tmp_path / "three", settings={"data": {"path": "train.jsonl", "held_out": "other.jsonl", "length": 64}}, tuning="ia3")
    assert next(each for each in compare(read([one, two])).methods if each.name == "two").against is not None
    found = compare(read([one, three]))
    assert all(each.against is None for each in found.methods)
    assert "different held-out data" in found.notes[0]


def test_a_share_held_out_by_the_seed_is_paired_seed_by_seed(tmp_path: Path):
    data = {"data": {"path": "train.jsonl", "held_out": 0.1, "length": 64}}
    folders = [write_run(tmp_path / f"{kind}-{seed}", seed, tuning=kind, settings=data) for kind in ("lora", "ia3") for seed in (0, 1)]
    tested = next(each for each in compare(read(folders)).methods if each.name == "ia3")
    assert tested.against.rows == 120
    apart = [folders[0], write_run(tmp_path / "late", 7, tuning="ia3", settings=data)]
    assert "held-out rows are not the same" in next(each for each in compare(read(apart)).methods if each.name == "late").reason


def test_lines_of_predictions_keep_their_order(tmp_path: Path):
    folder = write_run(tmp_path / "a", predictions=predicted(0, 0.5, 12, "a"))
    write_lines(folder / "predictions.jsonl", predicted(0, 0.5, 12, "a"))
    assert [line["row"] for line in read([folder]).cells[0].predictions()] == list(range(12))


@pytest.mark.parametrize("paths, names", [(("d/seen.jsonl", "d/unseen.jsonl"), ("seen", "unseen")), (("a/x.jsonl", "b/x.jsonl"),) * 2])
def test_a_path_on_an_axis_is_named_by_its_stem_where_that_tells_it_apart(tmp_path: Path, paths: tuple, names: tuple):
    methods = {f"lora{i}": {"point": {"data.held_out": path}} for i, path in enumerate(paths)}
    found = read([write_grid(tmp_path / "g", methods, seeds=(0,))])
    assert [cell.name for cell in found.cells] == [f"lora{i} held_out={name}" for i, name in enumerate(names)]
