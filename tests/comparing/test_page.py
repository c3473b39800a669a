"""The page of a comparison: whole, escaped, without anything from outside, and each part where there is something to show."""

import json
import re
from pathlib import Path

import pytest

from finished import write_grid, write_run
from luthier.comparing.page import page, write
from luthier.comparing.read import read
from luthier.comparing.summary import compare
from test_report import Page  # type: ignore[import-not-found]

EVIL = "<script>alert('1')</script>"


def html(*folders: Path, name: str = "grid") -> str:
    return page(compare(read(folders)), name)


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    trials = [{"point": {"training.rate": rate}, "loss": loss} for rate, loss in ((0.001, 0.4), (0.01, None))]
    methods = {
        "probe": {"accuracy": 0.5, "trained": 0},
        "lora": {"accuracy": 0.8, "trials": trials, "chosen": {"training.rate": 0.001}},
        "full": {"accuracy": 0.95, "trained": 10**7, "memory": 2**31},
        EVIL: {"accuracy": 0.7, "memory": 2**28},
        "broken": {"error": f"no {EVIL}"},
    }
    return write_grid(tmp_path / "g", methods, budget={"trials": {"lora": 2, "probe": 2}, "on": "loss", "share": 0.1, "seeds": [0, 1]})


def test_the_page_is_whole_and_takes_nothing_from_outside(grid: Path):
    text = html(grid)
    read_back = Page(text)
    assert not re.search(r"https?://|@import|\burl\((?!#)", text)
    for tag, attributes in read_back.tags:
        assert tag not in ("script", "link", "img", "iframe", "object")
        assert not {"src", "href", "onclick", "onload"} & attributes.keys()


def test_names_and_sentences_are_text_not_markup(grid: Path):
    text = html(grid, name=EVIL)
    assert "<script" not in text
    assert Page(text).text.count(EVIL) >= 4  # title, table, drawings, failures


def test_every_part_is_there(grid: Path):
    read_back = Page(html(grid))
    for words in ("Methods", "What it reaches", "Learning curves", "Errors by class", "Search", "What did not finish", "How to read this"):
        assert words in read_back.text
    assert "★ rate 0.001: 0.4" in read_back.text
    assert "rate 0.01: failed" in read_back.text
    assert "Trials of each method: 2; on 10 % of the training rows, seed 0, 1." in read_back.text
    assert "✕ broken, seeds 0, 1, 2" in read_back.text
    assert sum(attributes.get("class") == "chart" for _, attributes in read_back.tags) == 4


def test_methods_that_are_alike_are_named_together(tmp_path: Path):
    methods = {name: {"accuracy": figure, "trained": size} for name, figure, size in (("a", 1.0, 10), ("b", 1.0, 3000), ("c", 0.5, 5))}
    text = re.sub(r"\s+", " ", Page(html(write_grid(tmp_path / "g", methods))).text)
    assert "a and b have the highest accuracy together, 1.000; trained parameters: a with 10, b with 3,000." in text
    methods["b"]["accuracy"] = 0.5
    assert "a has the highest accuracy, 1.000" in re.sub(r"\s+", " ", Page(html(write_grid(tmp_path / "h", methods))).text)


def test_the_page_alone_goes_into_a_file(grid: Path, tmp_path: Path):
    assert write(tmp_path / "alone.html", compare(read([grid]))) == [tmp_path / "alone.html"]
    assert (tmp_path / "alone.html").read_text().startswith("<!doctype html>")


def test_methods_differ_in_shape_and_colour(grid: Path):
    """Colour is never the only mark."""
    keys = re.findall(r'<svg class="key (k\d)".*?<path class="mark" d="([^"]+)"', html(grid))
    legend = set(keys)
    assert len(legend) == len({colour for colour, _ in legend}) == len({shape for _, shape in legend}) == 4


def test_twenty_methods_all_look_different(tmp_path: Path):
    text = html(write_grid(tmp_path / "g", {f"method {i}": {"accuracy": 0.5 + i / 50} for i in range(20)}, seeds=[0]))
    assert len(set(re.findall(r'<svg class="key (k\d)".*?<path class="mark" d="([^"]+)"', text))) == 20


def test_points_stand_to_scale_and_the_front_is_ringed(tmp_path: Path):
    methods = {f"m{i}": {"accuracy": share, "trained": 10 ** (3 + i)} for i, share in enumerate((0.5, 0.9, 0.7))}
    drawn = re.search(
        r'aria-label="Accuracy by trained parameters">(.*?)</svg>', html(write_grid(tmp_path / "g", methods, seeds=[0])), re.DOTALL
    )[1]
    places = {name: (float(x), float(y)) for name, x, y in re.findall(r"<title>(m\d):.*?translate\(([\d.]+) ([\d.]+)\)", drawn, re.DOTALL)}
    assert places["m1"][0] - places["m0"][0] == pytest.approx(places["m2"][0] - places["m1"][0], abs=0.2)
    assert places["m1"][1] < places["m2"][1] < places["m0"][1]
    assert re.findall(r"front\"><title>(m\d)|behind\"><title>(m\d)", drawn) == [("m1", ""), ("", "m2"), ("m0", "")]


def test_all_places_lie_inside_the_drawing(grid: Path):
    for x, y in re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)", html(grid)):
        assert 40 <= float(x) <= 520
        assert 0 <= float(y) <= 300


@pytest.mark.parametrize("folders", [["a"], ["bare"], ["a", "bare"], ["empty", "a"]])
def test_parts_without_anything_to_show_are_left_out(tmp_path: Path, folders: list[str]):
    write_run(tmp_path / "a")
    write_run(tmp_path / "bare", predictions=[], tuning="ia3", result={"trainable": None, "memory_bytes": None, "tokens": None})
    (tmp_path / "bare" / "metrics.jsonl").unlink()
    write_run(tmp_path / "empty", predictions=[], tuning="full")
    (tmp_path / "empty" / "result.json").write_text("{}")
    Page(html(*(tmp_path / name for name in folders)))


def test_a_grid_where_everything_failed_still_has_a_page(tmp_path: Path):
    text = Page(html(write_grid(tmp_path / "g", {"probe": {"error": "no model"}}))).text
    assert "no model" in text
    assert "Learning curves" not in text


def test_write_leaves_the_four_files_and_nothing_half_done(grid: Path):
    paths = write(grid, compare(read([grid])))
    assert [path.name for path in paths] == ["table.json", "table.csv", "table.tex", "report.html"]
    assert json.loads(paths[0].read_text())["metric"] == "accuracy"
    assert not list(grid.glob(".*partial"))
