"""luthier evaluate: figures equal to those of the run itself, answers side by side, and what is refused."""

import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import luthier.cli.evaluate as verb
from luthier.cli import main
from luthier.evaluation._questions import read_questions
from luthier.run import Run
from luthier.run import run as start
from tiny import tiny_chat

runner = CliRunner()


@pytest.fixture(autouse=True)
def _answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that say which side gave them, without writing tokens."""
    sides = itertools.cycle(["base", "tuned"])

    def writer(model: object, max_tokens: int, temperature: float) -> verb.Write:
        side = next(sides)
        return lambda conversations: [f" {side} says {turns[-1]['content']}" for turns in conversations]

    monkeypatch.setattr(verb, "writer", writer)


def trained(folder: Path, objective: str, tuning: str, rows: list[dict], **more: object) -> Path:
    """The folder of a run of four steps."""
    tiny_chat().save(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = {
        "model": str(folder / "model"),
        "data": {"path": str(folder / "rows.jsonl"), "length": 64, "held_out": 4},
        "objective": {"kind": objective},
        "tuning": {"kind": tuning, **more},
        "training": {"steps": 4, "rows": 4, "rate": 0.05},
        "output": str(folder / "out"),
    }
    (folder / "run.yaml").write_text(json.dumps(run), encoding="utf-8")
    start(Run.from_yaml(folder / "run.yaml"))
    return folder / "out"


def talks(count: int = 12) -> list[dict]:
    asked = [[("user", f"say {i}"), ("assistant", "it is" + " not" * (i % 4))] for i in range(count)]
    return [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in asked]


def evaluated(*words: str | Path) -> dict:
    out = Path(words[0]).parent / "found.json"
    found = runner.invoke(main.app, ["evaluate", *map(str, words), "--out", str(out)])
    assert found.exit_code == 0, found.stderr
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("objective", "tuning", "fields", "measure"),
    [
        ("chat", "lora", {"rank": 2}, "perplexity"),
        ("chat", "full", {}, "perplexity"),
        ("classify", "lora", {"rank": 2}, "accuracy,macro_f1"),
        ("classify", "full", {}, "macro_f1"),
        ("classify", "features", {"stored": "fp16"}, "matthews"),
    ],
)
def test_a_run_scores_what_it_scored_when_it_ran(tmp_path: Path, objective: str, tuning: str, fields: dict, measure: str) -> None:
    rows = talks() if objective == "chat" else [{"text": "abc" * (1 + i % 3), "label": f"class {i % 3}"} for i in range(12)]
    if tuning == "features":
        fields = {**fields, "cache": str(tmp_path / "states")}
    folder = trained(tmp_path, objective, tuning, rows, **fields)
    figures = evaluated(folder, "--measures", measure)["figures"]
    result = json.loads((folder / "result.json").read_text())
    for when in ("before", "after"):
        assert figures[when]["loss"] == pytest.approx(result[when]["loss"], abs=1e-6)
        assert set(measure.split(",")) < figures[when].keys()
    assert figures["before"]["loss"] != pytest.approx(figures["after"]["loss"], abs=1e-3)


def test_answers_stand_side_by_side_in_the_terminal_and_in_every_format(tmp_path: Path) -> None:
    folder = trained(tmp_path, "chat", "lora", talks(), rank=2)
    (tmp_path / "ask.jsonl").write_text('{"question": "why?", "reference": "tuned says why?"}\n{"prompt": "<b>当</b>"}\n', encoding="utf-8")
    words = [
        "evaluate",
        str(folder),
        "--questions",
        str(tmp_path / "ask.jsonl"),
        "--measures",
        "bleu",
        "--data",
        str(tmp_path / "rows.jsonl"),
    ]
    for ending in ("html", "jsonl"):
        found = runner.invoke(main.app, [*words, "--rows", "2", "--out", str(tmp_path / f"found.{ending}")], env={"COLUMNS": "100"})
        assert found.exit_code == 0, found.stderr
        for text in ("base says why?", "tuned says why?", "before", "after", "bleu on questions"):
            assert text in found.stdout
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (lines[0]["before"], lines[0]["after"]) == ("base says why?", "tuned says why?")
    assert lines[1]["reference"] is None
    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert "tuned says &lt;b&gt;当&lt;/b&gt;" in page


def test_a_run_file_finds_its_folder_and_a_model_alone_has_one_side(tmp_path: Path) -> None:
    trained(tmp_path, "chat", "lora", talks(), rank=2)
    assert list(evaluated(tmp_path / "run.yaml")["figures"]) == ["before", "after"]
    alone = evaluated(tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--rows", "3")["figures"]
    assert list(alone) == ["model"]
    assert alone["model"].keys() == {"loss", "perplexity", "bits_per_byte"}
    both = evaluated(tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--adapter", tmp_path / "out/adapter")["figures"]
    assert both["before"]["loss"] != both["after"]["loss"]


def test_what_cannot_be_evaluated_is_refused_in_one_sentence(tmp_path: Path) -> None:
    tiny_chat().save(tmp_path / "model")
    (tmp_path / "labelled.jsonl").write_text('{"text": "a", "label": 1}\n' * 3)
    (tmp_path / "odd.jsonl").write_text('{"answer": "a"}\n')
    model = str(tmp_path / "model")
    cases = {
        (model,): "is a model, not a run",
        (model, "--data", str(tmp_path / "labelled.jsonl")): "need a run that learnt them",
        (model, "--questions", str(tmp_path / "odd.jsonl")): "odd.jsonl:1: no question there",
        (model, "--questions", "nowhere.txt"): "nowhere.txt: no such file",
        (model, "--questions", str(tmp_path / "odd.jsonl"), "--rows", "-1"): "--rows -1 must be 0 (all) or more",
        (model, "--data", str(tmp_path / "odd.jsonl"), "--out", "x.pdf"): "it must end in .html",
        (str(tmp_path / "nowhere"), "--data", str(tmp_path / "labelled.jsonl")): "nowhere",
    }
    for words, sentence in cases.items():
        found = runner.invoke(main.app, ["evaluate", *words])
        assert found.exit_code == 2, words
        assert sentence in found.stderr


@pytest.mark.parametrize(
    ("row", "asked", "reference"),
    [
        ({"text": "one line"}, ["one line"], ""),
        ({"instruction": "add", "input": "1 2", "output": "3"}, ["add\n\n1 2"], "3"),
        ({"question": "q", "answer": "a", "system": "s"}, ["s", "q"], "a"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["q"], "a"),
        ({"messages": [{"role": "user", "content": "q"}]}, ["q"], ""),
    ],
)
def test_questions_are_read_from_every_form(tmp_path: Path, row: dict, asked: list[str], reference: str) -> None:
    (tmp_path / "ask.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = read_questions(tmp_path / "ask.jsonl")
    assert [turn["content"] for turn in found.messages] == asked
    assert found.messages[-1]["role"] == "user"
    assert found.reference == reference
