"""luthier compare of finished runs: its forms, exit codes, and how little it imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finished import write_grid, write_run
from luthier.cli import main

runner = CliRunner()


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    return [
        str(write_run(tmp_path / f"{kind}-{seed}", seed, share, tuning=kind))
        for kind, share in (("probe", 0.5), ("lora", 0.9))
        for seed in (0, 1)
    ]


def test_runs_are_shown_as_a_table_and_as_json(folders: list[str]):
    table = runner.invoke(main.app, ["compare", *folders])
    assert table.exit_code == 0, table.stderr
    assert table.stdout.splitlines()[2].startswith("lora")
    assert json.loads(runner.invoke(main.app, ["compare", *folders, "--json"]).stdout)["first"] == "probe"


def test_a_grids_folder_and_a_metric(tmp_path: Path):
    grid = write_grid(tmp_path / "g", {"probe": {"accuracy": 0.5}, "lora": {"accuracy": 0.9}, "prompt": {"error": "too long"}})
    found = runner.invoke(main.app, ["compare", str(grid), "--metric", "loss"])
    assert found.exit_code == 0
    assert "prompt, seeds 0, 1, 2 failed: too long" in found.stdout


def test_tables_and_a_page_are_written_where_they_are_asked_for(folders: list[str], tmp_path: Path):
    found = runner.invoke(main.app, ["compare", *folders, "--report", str(tmp_path / "both")])
    assert found.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["report.html", "table.csv", "table.json", "table.tex"]


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["nowhere"], "luthier: nowhere: no such folder\n"),
        (["{a}", "--metric", "bleu"], "luthier: none of the runs has a figure called 'bleu'; there are loss, accuracy\n"),
        (["{a}", "--resume"], "luthier: --resume is for a grid; name its YAML file\n"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(folders: list[str], words: list[str], sentence: str):
    found = runner.invoke(main.app, ["compare", *(word.replace("{a}", folders[0]) for word in words)])
    assert (found.exit_code, found.stderr) == (2, sentence)


def test_finished_runs_are_compared_without_the_heavy_packages(folders: list[str]):
    script = (
        "import sys\nfrom luthier.cli.main import app\n"
        f"try:\n    app(['compare', *{folders!r}])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'jinja2', 'transformers', 'pyarrow'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "lora" in found.stdout
