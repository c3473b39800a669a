"""The report of a run: whole, escaped, without anything from outside, and drawn to scale."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from luthier.report import Scale, brief, count, curve, duration, figures, page, signed, ticks, write

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks nesting; gathers text, attributes and tags."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [{"step": 0, "held_out": 3.0}]
    lines += [{"step": step, "loss": 3.0 - step / 20, "tokens": 100, "tokens_per_s": 50.0, "memory_bytes": 2**30} for step in range(1, 31)]
    lines += [{"step": 30, "loss": 1.5, "held_out": 2.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before, after = {"step": 0, "loss": 3.0, "bleu": 4.0, "pearson": None}, {"step": 30, "loss": 2.0, "bleu": 3.5, "pearson": 0.4}
    result = {
        "steps": 30,
        "tokens": 3000,
        "time_s": 60.0,
        "trainable": 2_442_240,
        "parameters": 134_515_008,
        "before": before,
        "after": after,
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
    samples = [
        {"prompt": "<script>alert(1)</script> & 你好", "before": "", "after": "好 {{ 1 + 1 }}"},
        {
            "prompt": turns,
            "before": "a\n\nb",
            "after": "c",
            "reference": "d",
        },
    ]
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    (tmp_path / "config.yaml").write_text(
        "model: pkg://a/thing.gguf\nobjective: {kind: chat}\ntuning: [{kind: lora}, {kind: bitfit}]\nname: a<b\n"
    )
    (tmp_path / "manifest.json").write_text(json.dumps({"torch": "2.13", "data": [{"path": "x", "sha256": "ff"}]}))
    return tmp_path


def test_the_page_is_well_formed_and_asks_for_nothing_from_outside(folder: Path) -> None:
    path = write(folder)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "img", "iframe", "object")
        assert not {"src", "href", "onload", "onclick"} & attributes.keys()
    assert "url(http" not in text
    assert "@import" not in text
    assert not list(folder.glob(".report*"))


def test_what_people_and_models_wrote_is_shown_as_text(folder: Path) -> None:
    shown = Page(page(folder)).text
    for words in ("<script>alert(1)</script> & 你好", "好 {{ 1 + 1 }}", "a\n\nb", "(nothing)", "name: a<b", "be brief", "why?"):
        assert words in shown


def test_the_run_is_named_by_its_parts_and_its_cost(folder: Path) -> None:
    shown = Page(page(folder)).text
    for words in (
        "thing.gguf",
        "lora + bitfit",
        "3,000",
        "1 min 00 s",
        "50 tokens/s",
        "1.00 GB",
        "2.44 M",
        "1.8% of 135 M",
        "data.0.sha256",
    ):
        assert words in shown


def test_a_change_is_good_where_loss_falls_and_other_figures_rise() -> None:
    rows = {row["name"]: row for row in figures({"loss": 3.0, "bleu": 4.0, "f": 1.0}, {"loss": 2.0, "bleu": 3.5, "f": 1.0})}
    assert (rows["loss"]["mark"], rows["bleu"]["mark"], rows["f"]["mark"]) == ("better", "worse", "")
    assert rows["loss"]["change"] == "−1"


def test_figures_that_are_not_numbers_are_a_dash(folder: Path) -> None:
    (folder / "result.json").write_text('{"steps": 2, "before": {"loss": NaN, "pearson": null}, "after": {"loss": 2.0, "pearson": 0.5}}')
    result = json.loads((folder / "result.json").read_text())
    rows = {row["name"]: row for row in figures(result["before"], result["after"])}
    assert rows["loss"]["before"] == rows["pearson"]["before"] == "–"
    Page(page(folder))


def test_a_run_that_has_not_finished_is_reported_from_its_metrics(folder: Path) -> None:
    for name in ("result.json", "samples.json", "config.yaml", "manifest.json"):
        (folder / name).unlink()
    shown = Page(page(folder)).text
    assert "not finished" in shown
    assert "Answers" not in shown


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no metrics\.jsonl"):
        write(tmp_path)


def test_the_curve_is_drawn_to_scale(folder: Path) -> None:
    lines = [{"step": step, "loss": 2.0 - step} for step in (0, 1, 2)]
    drawn = curve(lines)
    assert drawn is not None
    places = [tuple(map(float, point.split(","))) for point in drawn["train"].split()]
    assert [x for x, _ in places] == [Scale.left, (Scale.left + Scale.right) / 2, Scale.right]
    assert places[1][1] == pytest.approx((places[0][1] + places[2][1]) / 2, abs=0.1)
    assert places[0][1] < places[2][1]  # the loss falls: further down the page
    assert all(Scale.top <= y <= Scale.bottom for _, y in places)


def test_every_held_out_loss_is_inside_the_box_though_single_steps_may_not_be() -> None:
    lines = [{"step": step, "loss": 1.0 if step != 40 else 99.0} for step in range(1, 101)] + [{"step": 100, "held_out": 2.0}]
    drawn = curve(lines)
    assert drawn is not None
    (_, y, label), *_ = drawn["dots"]
    assert Scale.top <= y <= Scale.bottom
    assert label == "step 100: held-out loss 2.0000"
    assert curve(lines[:1]) is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (1.44, 2.48), (0.0001, 0.0009), (0, 123456), (-3, 4)])
def test_ticks_are_round_and_neither_few_nor_many(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert all(low <= tick <= high for tick in found)
    gap = f"{found[1] - found[0]:.3e}"
    assert gap[:5] in ("1.000", "2.000", "5.000")


def test_a_part_of_the_run_is_named_by_the_end_of_its_path() -> None:
    assert brief("pkg://smol/SmolLM2.gguf") == "SmolLM2.gguf"
    assert brief("pkg://minilm/model") == "minilm/model"
    assert brief({"arch": "llama", "width": 8}) == "llama"
    assert brief([{"path": "a/b.jsonl", "weight": 1}, {"path": "c.csv"}]) == "b.jsonl + c.csv"
    assert brief({"fuse": [{"kind": "lora"}]}) == "fuse"


def test_numbers_read_as_people_write_them() -> None:
    assert [count(v) for v in (0, 950, 1234, 45_678, 2_442_240, 134_515_008, 7e9)] == [
        "0",
        "950",
        "1,234",
        "45.7 k",
        "2.44 M",
        "135 M",
        "7 B",
    ]
    assert [duration(v) for v in (0.25, 42, 60, 3725)] == ["0.2 s", "42 s", "1 min 00 s", "1 h 02 min"]
    assert signed(-0.5, ".3f") == "−0.500"
