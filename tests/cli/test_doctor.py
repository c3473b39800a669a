"""luthier doctor: a run file with everything it names, looked at."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier.cli import main
from tiny import tiny_chat

runner = CliRunner()
RUN = """\
model: MODEL
data: {path: DATA, length: 64, held_out: 0}
objective: chat
tuning: {kind: lora, roles: [q], rank: 2}
training: {steps: 2, rows: 2}
output: OUTPUT
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run file over a tiny model on disk and two conversations."""
    tiny_chat().save(tmp_path / "model")
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 2, encoding="utf-8")
    text = (
        RUN.replace("MODEL", str(tmp_path / "model")).replace("DATA", str(tmp_path / "rows.jsonl")).replace("OUTPUT", str(tmp_path / "out"))
    )
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    return tmp_path / "run.yaml"


def test_a_good_run_is_fine_and_nothing_is_written(run: Path):
    found = runner.invoke(main.app, ["doctor", str(run)])
    assert found.exit_code == 0, found.stderr
    assert "\tend of answers\tfine\t\n" in found.stdout
    assert "STOP" not in found.stdout
    assert not (run.parent / "out").exists()


def test_a_run_that_cannot_come_out_well_ends_with_2(run: Path):
    found = runner.invoke(main.app, ["doctor", str(run), "data.length=8"])
    assert found.exit_code == 2
    assert "\tsomething to learn\tSTOP\tnone of the 2 rows has an answer that begins within data.length=8 tokens" in found.stdout
    assert found.stderr.startswith(f"luthier: {run} would not start: 1 of ")


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("tuning.rnak=2", "override tuning.rnak=2: unknown key 'rnak' in tuning; did you mean 'rank'?"),
        ("data.path=nowhere.jsonl", "nowhere.jsonl"),
        ("model=nowhere", "nowhere"),
    ],
)
def test_what_is_not_there_is_named(run: Path, override: str, sentence: str):
    found = runner.invoke(main.app, ["doctor", str(run), override])
    assert found.exit_code == 2
    assert found.stderr.startswith("luthier: ")
    assert sentence in found.stderr
