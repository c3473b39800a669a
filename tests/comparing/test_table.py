"""The table in its forms: it fits the terminal, and nothing in a name breaks JSON, CSV or LaTeX."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from finished import write_grid, write_run
from luthier.comparing import table
from luthier.comparing.read import read
from luthier.comparing.summary import Comparison, compare

LATENCY = {"latency": {"base": 1e-3, "unmerged": 1.0425e-3, "merged": 1e-3}}
METHODS = {
    "probe": {"accuracy": 0.6, "trained": 2310},
    "lora": {
        "accuracy": 0.9,
        "result": LATENCY,
        "chosen": {"training.rate": 0.001},
        "trials": [{"point": {"training.rate": 0.001}, "loss": float("nan")}],
    },
    "低秩适配": {"accuracy": 0.85, "trained": 22_700_000, "memory": 3 * 2**30},
    "a_name & 100% {of} \\things$ | <tags>": {"accuracy": 0.7},
    "prompt": {"error": "the prompt is too long"},
}


@pytest.fixture
def found(tmp_path: Path) -> Comparison:
    return compare(read([write_grid(tmp_path / "g", METHODS, budget="3 trials")]))


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_columns_stand_below_each_other(found: Comparison, width: int):
    text = table.terminal(found, width)
    assert max(map(table.size, text.splitlines())) <= width
    for block in text.split("\n\n")[:-1]:
        lines = block.splitlines()
        rule = next(line for line in lines if set(line) == {"─"})
        assert {table.size(line) for line in lines if line.endswith(("%", "B", "3", "k"))} <= {table.size(rule)}
    for name in ("probe", "lora", "低秩适配"):
        assert name in text
    assert "prompt, seeds 0, 1, 2 failed: the prompt is too long" in re.sub(r"\s+", " ", text)


def test_every_column_of_a_wide_table_is_in_the_narrow_one(found: Comparison):
    narrow = table.terminal(found, 60)
    assert all(column.short in narrow for column in table.columns(found))


def test_chinese_takes_two_columns_a_character(found: Comparison):
    assert table.size("低秩适配") == 8
    assert table.size("e\u0301") == 1
    lines = {line.split()[0]: line for line in table.terminal(found, 200).splitlines() if line.split()[:1] in (["低秩适配"], ["probe"])}
    assert lines["低秩适配"].index("±") == lines["probe"].index("±") - 4  # as far right, behind fewer characters


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path: Path):
    text = table.terminal(compare(read([write_grid(tmp_path / "g", {"a\x1b[31m\nb": {}}, seeds=[0])])), 80)
    assert "\x1b" not in text
    assert "a?[31m?b" in text


def test_json_holds_every_number_and_no_nan(found: Comparison):
    values = json.loads(table.as_json(found), parse_constant=lambda word: pytest.fail(word))
    assert (values["metric"], values["first"], values["higher_is_better"], values["budget"]) == ("accuracy", "probe", True, "3 trials")
    lora = next(each for each in values["methods"] if each["method"] == "lora")
    assert len(lora["figures"]["accuracy"]["values"]) == 3
    assert lora["against_first"]["rows"] == 60
    assert lora["latency_s"] == pytest.approx({"base": 1e-3, "unmerged": 1.0425e-3, "merged": 1e-3})
    assert lora["trials"] == [{"point": {"training.rate": 0.001}, "loss": None}]
    assert lora["chosen"] == {"training.rate": 0.001}
    assert [each["error"] for each in values["failed"]] == ["the prompt is too long"] * 3


def test_csv_gives_back_the_names_and_the_numbers(found: Comparison):
    rows = list(csv.DictReader(io.StringIO(table.as_csv(found))))
    assert {row["method"] for row in rows} == METHODS.keys() - {"prompt"}
    lora = next(row for row in rows if row["method"] == "lora")
    assert float(lora["accuracy"]) == next(each for each in found.methods if each.name == "lora").figures["accuracy"].mean
    assert float(lora["latency_unmerged_s"]) == pytest.approx(1.0425e-3)
    assert next(row for row in rows if row["method"] == "probe")["p"] == ""


def test_latex_has_as_many_cells_in_each_row_and_every_sign_escaped(found: Comparison):
    text = table.as_latex(found)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    assert len(re.findall(r"(?<!\\)&", rows[0])) == len(re.search(r"tabular\}\{(l r*)\}".replace(" ", ""), text)[1]) - 1
    assert r"a\_name \& 100\% \{of\} \textbackslash{}things\$ \textbar{} \textless{}tags\textgreater{}" in text
    assert not re.search(r"(?<!\\)[%#](?! \\usepackage| prompt)", text)
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_one_run_alone_is_a_row_without_a_test(tmp_path: Path):
    text = table.terminal(compare(read([write_run(tmp_path / "a")])), 80)
    assert "vs" not in text
    assert "bootstrap" not in text


@pytest.mark.parametrize(
    "value, text",
    [
        (512, "512 B"),
        (2048, "2 kB"),
        (3.5 * 2**20, "3.5 MB"),
        (999 * 2**20, "999 MB"),
        (2**30, "1.00 GB"),
        (25 * 2**30, "25.0 GB"),
        (None, "–"),
    ],
)
def test_bytes_in_words(value: float | None, text: str):
    assert table.bytes_text(value) == text


@pytest.mark.parametrize(
    "value, text", [(0, "0"), (4.25e-5, "+42 µs"), (-6e-8, "−60 ns"), (0.0031, "+3.1 ms"), (2.0, "+2 s"), (1.5e-4, "+150 µs")]
)
def test_times_in_words(value: float, text: str):
    assert table.time_text(value) == text


@pytest.mark.parametrize("text", ["adapter held_out=webnlg-unseen", "前缀微调与适配器的比较 rank=8", "a" * 40])
def test_a_long_name_loses_its_middle_and_keeps_both_ends(text: str):
    for width in range(8, table.size(text)):
        short = table.cut(text, width)
        head, _, tail = short.partition("…")
        assert width - 2 <= table.size(short) <= width
        assert head and tail and text.startswith(head) and text.endswith(tail)
    assert table.cut(text, table.size(text)) == text
