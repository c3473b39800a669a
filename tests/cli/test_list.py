"""luthier list: what stands on the shelves, read from the source."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier import lookup
from luthier.cli import main

runner = CliRunner()


def listed(*words: str) -> str:
    found = runner.invoke(main.app, ["list", *words])
    assert found.exit_code == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("shelf", lookup.SHELVES)
def test_json_names_every_plug_in_with_title_paper_and_file(shelf: str):
    rows = json.loads(listed(shelf, "--json"))
    assert [row["name"] for row in rows] == lookup.names(shelf)
    for row in rows:
        assert row["shelf"] == shelf
        assert row["title"]
        assert isinstance(row["paper"], str)
        assert Path(row["file"]).stem == row["name"]
        assert Path(row["file"]).is_file()


def test_json_has_the_presets_of_a_model_and_what_it_was_verified_against():
    row = next(row for row in json.loads(listed("models", "--json")) if row["name"] == "llama")
    small = row["presets"]["smollm2-135m"]
    assert (small["layers"], small["width"], small["heads"], small["vocab"], small["parameters"]) == (30, 576, 9, 49_152, 134_515_008)
    assert "transformers" in row["verified"]
    assert {"name": "layers", "type": "int", "doc": "", "default": 32} in row["fields"]


def test_all_shelves_together_hold_each_of_them():
    rows = json.loads(listed("--json"))
    assert [(row["shelf"], row["name"]) for row in rows] == [(shelf, name) for shelf in lookup.SHELVES for name in lookup.names(shelf)]


def test_one_plug_in_shows_its_settings():
    text = listed("tuning", "lora")
    assert "arXiv:2106.09685" in text
    assert "\n\trank\tint\t8\t" in text


def test_without_a_terminal_a_plug_in_is_one_line():
    lines = listed("evaluation").splitlines()
    assert lines[0] == "evaluation"
    assert [line.split("\t")[1] for line in lines[1:]] == lookup.names("evaluation")


def test_what_has_no_oracle_says_so(tmp_path: Path):
    import luthier.tuning as package

    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "own.py").write_text(
        '"""Own."""\nfrom dataclasses import dataclass\n@dataclass\nclass Own:\n    pass\n', encoding="utf-8"
    )
    before = list(package.__path__)
    try:
        assert "\town\tOwn\t\tunverified\n" in listed("tuning", "--plugins", str(tmp_path))
    finally:
        package.__path__[:] = before


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from luthier.cli import list as verb

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    verb.print_table("shelf", ("name", "what"), [("lora", "tuple[str, ...]")])
    assert "tuple[str, ...]" in capsys.readouterr().out


def test_an_unknown_shelf_or_plug_in_gets_a_suggestion():
    found = runner.invoke(main.app, ["list", "model"])
    assert (found.exit_code, found.stderr) == (2, "luthier: no shelf called 'model'; did you mean 'models'?\n")
    found = runner.invoke(main.app, ["list", "tuning", "loar"])
    assert (found.exit_code, found.stderr) == (2, "luthier: no tuning called 'loar'; did you mean 'lora'?\n")


def test_what_no_run_file_trains_is_said():
    assert "no run file trains it alone: it reads pictures" in listed("models")
    assert "no run file trains it alone" in listed("models", "vit")
    assert {row["name"] for row in json.loads(listed("models", "--json")) if "untrained" in row} == {"ddpm", "q_former", "vit"}
