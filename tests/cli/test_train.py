"""luthier train: what it prints, its exit codes, and that mistakes are told before torch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from luthier.cli.main import app
from tinyrun import write_run


def luthier(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_run_ends_with_what_came_of_it(tmp_path: Path) -> None:
    done = luthier("train", write_run(tmp_path), "training.steps=3")
    assert done.exit_code == 0, done.output
    assert "steps               3 (" in done.stdout
    assert "before, " in done.stdout
    assert f"result              {tmp_path / 'out' / 'adapter'}" in done.stdout
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_second_start_is_refused_and_resume_goes_on(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    luthier("train", path, "training.steps=3")
    again = luthier("train", path, "training.steps=3")
    assert again.exit_code == 2
    assert "out is not empty; go on there with --resume auto" in again.stderr
    assert luthier("train", path, "training.steps=4", "--resume", "auto").exit_code == 0
    assert '"step": 4' in (tmp_path / "out" / "metrics.jsonl").read_text()


def test_a_dry_run_says_what_would_train(tmp_path: Path) -> None:
    done = luthier("train", write_run(tmp_path), "--dry-run")
    assert done.exit_code == 0, done.output
    assert "dry run: everything is in order" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "override, told",
    [
        ("training.raet=1", "unknown key 'raet' in training; did you mean 'rate'?"),
        ("training.rows=null", "training needs exactly one of tokens and rows; neither is given"),
        ("training.rate=-1", "training.rate=-1.0 must be 0 or more"),
        ("tuning.rank=0", "a rank is 1 at least"),
        ("data.path=missing.jsonl", "missing.jsonl"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(override: str, told: str, tmp_path: Path) -> None:
    done = luthier("train", write_run(tmp_path), override)
    assert done.exit_code == 2
    assert told in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_mistake_in_the_file_is_told_without_torch(tmp_path: Path) -> None:
    path = write_run(tmp_path, training={"raet": 1})
    code = (
        "import sys\nfrom luthier.cli.main import app\n"
        f"try: app(['train', {str(path)!r}])\nexcept SystemExit as stop: code = stop.code\n"
        "assert code == 2 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "did you mean 'rate'?" in done.stderr
