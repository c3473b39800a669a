"""luthier data: what a user sees, and the exit code and the one sentence when something is wrong."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner, Result

from luthier.cli.main import app
from luthier.data.read import read
from tiny import smollm2_path

TALK = {"messages": [{"role": "user", "content": "Ping?"}, {"role": "assistant", "content": "Pong!"}]}


def luthier(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text(json.dumps(TALK) + "\n" + json.dumps(TALK) + "\n")
    return path


def test_inspect_shows_the_learnt_part_between_marks_and_counts(file):
    done = luthier("inspect", file, "--model", smollm2_path())
    assert done.exit_code == 0, done.stderr
    assert "form messages, 2 rows, columns messages" in done.stdout
    assert "<|im_start|>assistant\n⟦Pong!<|im_end|>⟧\n" in done.stdout and "named SmolLM" in done.stdout
    assert "rows that stand there twice: 1" in done.stdout and "the end of the turn in 2 rows" in done.stdout


def test_data_needs_no_torch(file):
    code = "import sys; sys.modules['torch'] = None; from luthier.cli.main import main; main()"
    for verb in (("inspect", str(file), "--model", str(smollm2_path())), ("validate", str(file))):
        done = subprocess.run([sys.executable, "-c", code, "data", *verb], capture_output=True, text=True)
        assert done.returncode == 0 and "2 rows" in done.stdout, done.stderr


def test_inspect_without_a_model_uses_a_plain_template_and_says_so(file):
    done = luthier("inspect", file)
    assert done.exit_code == 0 and "plain template human_assistant" in done.stdout and "Assistant:⟦ Pong!" in done.stdout
    assert "答：⟦Pong!" in luthier("inspect", file, "--template", "chatglm").stdout


def test_inspect_colours_tokens_in_a_terminal():
    from rich.console import Console

    from luthier.cli.data import _coloured

    console = Console(force_terminal=True, width=80, color_system="standard")
    with console.capture() as shown:
        console.print(_coloured("ask answer", [(4, 10)], None, True))
    assert "\x1b[2mask \x1b[0m\x1b[1;32manswer\x1b[0m" in shown.get()


def test_validate_says_all_is_well_or_lists_every_bad_row(file):
    assert "2 rows of the form messages, every one good" in luthier("validate", file).stdout
    file.write_text(file.read_text() + '{"messages": \n' + json.dumps({"messages": TALK["messages"][:1]}) + "\n")
    done = luthier("validate", file)
    assert done.exit_code == 2 and "2 of 4 rows cannot be used" in done.stderr
    assert "talk.jsonl:3: not valid JSON" in done.stderr and "talk.jsonl:4: no assistant turn" in done.stderr


def test_validate_with_a_model_finds_answers_that_are_cut_away(file):
    done = luthier("validate", file, "--model", smollm2_path(), "--length", 8)
    assert done.exit_code == 2 and "every answer lies beyond data.length=8; raise it to" in done.stderr


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_convert_there_and_back_keeps_the_rows(file, kind, tmp_path):
    out, back = tmp_path / f"out.{kind}", tmp_path / "back.jsonl"
    assert luthier("convert", file, out, "--to", "sharegpt").exit_code == 0
    done = luthier("convert", out, back)
    assert done.exit_code == 0 and "back.jsonl: 2 rows" in done.stdout
    assert list(read(back)) == [TALK, TALK]


def test_convert_never_writes_over_a_file_unasked(file, tmp_path):
    done = luthier("convert", file, file)
    assert done.exit_code == 2 and "is there already; give another name or --force" in done.stderr
    assert luthier("convert", file, file, "--to", "rows", "--force").exit_code == 0 and list(read(file)) == [TALK, TALK]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("inspect", "missing.jsonl"), "luthier: missing.jsonl: no such file"),
        (("inspect", "{file}", "--row", "9"), "has rows 1 to 2"),
        (("inspect", "{file}", "--template", "vicunna"), "did you mean 'vicuna'?"),
        (("inspect", "{file}", "--model", "nowhere"), "nowhere: no such file or folder"),
        (("inspect", "{file}", "--form", "chat"), "data.form='chat' is not known"),
        (("convert", "{file}", "out.xml"), "files ending in '.xml' are not written"),
        (("convert", "{file}", "out.csv", "--to", "parquet"), "then out.csv should end in .parquet"),
        (("convert", "{file}", "out.csv", "--to", "xml"), "choose messages, sharegpt or rows"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(arguments, sentence, file):
    done = luthier(*(argument.format(file=file) for argument in arguments))
    assert done.exit_code == 2 and sentence in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
