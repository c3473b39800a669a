"""The command line: exit codes, one sentence on stderr, and no torch before it is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from luthier.cli import main
from luthier.config import RunFailed

runner = CliRunner()


def outcome(monkeypatch: pytest.MonkeyPatch, error: BaseException, *options: str):
    """What `luthier init` ends in when the verb raises this."""

    def init() -> None:
        raise error

    single = typer.Typer()
    single.command()(init)
    monkeypatch.setattr(main, "load", lambda verb: typer.main.get_command(single))
    return runner.invoke(main.app, [*options, "init"])


@pytest.mark.parametrize(
    "error, code, sentence",
    [
        (ValueError("heads=3 must divide by kv_heads=2"), 2, "luthier: heads=3 must divide by kv_heads=2\n"),
        (FileNotFoundError("run.yaml does not exist"), 2, "luthier: run.yaml does not exist\n"),
        (OSError(28, "No space left on device", "runs/x"), 2, "luthier: runs/x: No space left on device\n"),
        (OSError(28, "No space left on device"), 2, "luthier: No space left on device\n"),
        (ValueError(), 2, "luthier: ValueError\n"),
        (RunFailed("the loss is NaN at step 3"), 1, "luthier: the loss is NaN at step 3\n"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Exit(5), 5, ""),
    ],
)
def test_what_a_verb_raises_becomes_an_exit_code_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, sentence: str
):
    found = outcome(monkeypatch, error)
    assert (found.exit_code, found.stderr, found.stdout) == (code, sentence, "")


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    assert isinstance(outcome(monkeypatch, KeyError("x")).exception, KeyError)


def test_traceback_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch):
    assert isinstance(outcome(monkeypatch, ValueError("x"), "--traceback").exception, ValueError)


def test_help_has_one_line_for_every_verb():
    found = runner.invoke(main.app, ["--help"])
    for verb in main.verbs():
        assert main.help_line(verb), f"cli/{verb}.py needs a docstring: its first line is shown by `luthier --help`"
        assert f"  {verb} " in found.stdout
    assert "main" not in main.verbs()


@pytest.mark.parametrize("verb", main.verbs())
def test_every_verb_explains_itself(verb: str):
    found = runner.invoke(main.app, [verb, "--help"])
    assert found.exit_code == 0, found.exception
    assert found.stdout.startswith(f"Usage: root {verb}")
    assert len(found.stdout.splitlines()) > 3


def test_a_mistyped_verb_gets_a_suggestion():
    found = runner.invoke(main.app, ["lits"])
    assert found.exit_code == 2
    assert "Did you mean 'list'?" in found.stderr


def test_wrong_words_are_refused():
    assert runner.invoke(main.app, ["list", "--what"]).exit_code == 2
    assert runner.invoke(main.app, ["init", "a", "b"]).exit_code == 2


def test_version_is_the_installed_one():
    from importlib.metadata import version

    assert runner.invoke(main.app, ["--version"]).stdout == f"luthier {version('luthier')}\n"


def start(*words: str, cwd: Path | None = None) -> tuple[int, set[str], str]:
    """Exit code, imported modules and stderr of `luthier words` in a process of its own."""
    program = f"""
import sys
from luthier.cli.main import main
sys.argv = ["luthier", *{words!r}]
try:
    main()
except SystemExit as end:
    code = end.code
print("\\n", code, *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=cwd, check=True)
    code, *modules = done.stdout.rpartition("\n ")[2].split()
    return int(code), set(modules), done.stderr


@pytest.mark.parametrize(
    "words",
    [("--help",), ("list",), ("list", "models"), ("list", "models", "llama"), ("list", "--json"), ("init", "--help"), ("--version",)],
)
def test_light_verbs_start_without_torch_and_pydantic(words: tuple[str, ...]):
    code, modules, _ = start(*words)
    assert code == 0
    assert not modules & {"torch", "pydantic", "numpy", "transformers"}


@pytest.mark.parametrize("verb", main.verbs())
def test_the_help_of_every_verb_comes_without_torch(verb: str):
    code, modules, _ = start(verb, "--help")
    assert code == 0
    assert not modules & {"torch", "transformers", "tokenizers"}


def test_init_writes_a_file_and_never_over_another(tmp_path: Path):
    path = tmp_path / "run.yaml"
    assert runner.invoke(main.app, ["init", str(path)]).exit_code == 0
    written = path.read_text(encoding="utf-8")
    found = runner.invoke(main.app, ["init", str(path)])
    assert (found.exit_code, path.read_text(encoding="utf-8")) == (2, written)
    assert "exists already" in found.stderr


@pytest.mark.parametrize("verb", ["doctor", "train"])
def test_mistakes_in_a_run_file_are_told_without_torch_and_pydantic(tmp_path: Path, verb: str):
    (tmp_path / "run.yaml").write_text("tuning: {kind: loar}\ntraining: {raet: 1}\n", encoding="utf-8")
    code, modules, stderr = start(verb, "run.yaml", cwd=tmp_path)
    assert code == 2
    assert "run.yaml:1: tuning.kind: no tuning called 'loar'; did you mean 'lora'?\n" in stderr
    assert "run.yaml:2: unknown key 'raet' in training; did you mean 'rate'?\n" in stderr
    assert not modules & {"torch", "pydantic", "numpy", "transformers"}


def test_the_example_of_init_is_a_run_file(tmp_path: Path):
    from luthier.run import Run

    runner.invoke(main.app, ["init", str(tmp_path / "run.yaml")])
    assert Run.from_yaml(tmp_path / "run.yaml").objective == {"kind": "chat"}


@pytest.mark.parametrize("verb", main.verbs())
def test_a_verbs_line_of_help_is_the_first_of_its_docstring(verb: str):
    docstring = ast.get_docstring(ast.parse((main.FOLDER / f"{verb}.py").read_text(encoding="utf-8"))) or ""
    assert main.help_line(verb) == docstring.partition("\n")[0] != ""


def test_python_m_luthier_is_the_command(tmp_path: Path):
    done = subprocess.run([sys.executable, "-m", "luthier", "inspect", str(tmp_path / "nothing")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("luthier: ")
