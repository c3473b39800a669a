"""Runs of the tasks from end to end: labels are found, saved with the run and found again."""

import json

import pytest
import yaml

from luthier.run import Run, run
from luthier.sources.load import load_model
from tinyrun import write_rows, write_run, write_tokenizer

TASKS = {
    "classify": ([{"text": "a" * i, "label": "even" if i % 2 == 0 else "odd"} for i in range(1, 30)], "accuracy"),
    "tag": ([{"tokens": ["ab", "c"] * i, "tags": ["B", "O"] * i} for i in range(1, 20)], "span_f1"),
    "extract": (
        [{"question": "b?", "context": "a" * i + " b", "answers": [{"text": "b", "start": i + 1}]} for i in range(1, 20)],
        "exact_match",
    ),
    "choose": ([{"question": "b?", "choices": ["a" * i, "b"], "answer": 1} for i in range(1, 20)], "accuracy"),
    "regress": ([{"text": "a" * i, "pair": "b", "score": i / 10} for i in range(1, 30)], "pearson"),
    "translate": ([{"source": "ab" * i, "target": "ba" * i} for i in range(1, 20)], "perplexity"),
    "causal": ([{"text": "ab" * i} for i in range(1, 20)], "perplexity"),
}


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_is_learnt_and_measured(kind, tmp_path):
    rows, measure = TASKS[kind]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    model = {}
    if kind == "translate":
        tiny = {"arch": "t5", "width": 16, "layers": 2, "heads": 2, "head_width": 8, "hidden": 24, "start": 256}
        load_model({**tiny, "tokenizer": str(write_tokenizer(tmp_path / "letters"))}).save(tmp_path / "t5")
        model = {"model": str(tmp_path / "t5")}
    path = write_run(
        tmp_path, data={"path": str(data), "form": "scored" if kind == "regress" else "auto"}, objective={"kind": kind}, tuning="full",
        evaluation=[measure], training={"steps": 8, "rate": 3e-3}, **model,
    )  # fmt: skip
    result = run(Run.from_yaml(path))
    assert result.history is not None
    before, after = result.history.before, result.history.after
    assert before is not None
    assert after is not None
    assert after["loss"] < before["loss"]
    assert set(after) > {"loss", "step"}


def test_the_label_names_are_saved_with_the_run(tmp_path):
    rows, _ = TASKS["classify"]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    path = write_run(tmp_path, data={"path": str(data)}, objective={"kind": "classify"}, training={"steps": 2})
    run(Run.from_yaml(path))
    saved = tmp_path / "out" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["objective"]["labels"] == ["even", "odd"]
    assert Run.from_yaml(saved).objective["labels"] == ["even", "odd"]  # type: ignore[index]
    run(Run.from_yaml(path), resume="auto")  # the same run all the same
    assert json.loads((tmp_path / "out" / "result.json").read_text())["steps"] == 2
