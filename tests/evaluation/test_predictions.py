"""predictions.jsonl: what it holds gives the run's own figures again, for every kind of objective."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sklearn.metrics

from luthier.evaluation import _predictions
from luthier.run import Ready, Run, predict, prepare, run, steps
from luthier.training.loop import last
from tinyrun import chats, write_rows, write_run

TEXTS = [f"{word} {other}" for word in ("lute", "viol", "harp", "drum", "tune") for other in ("peg", "fret", "bow", "string")]
ROWS: dict[str, list[dict[str, Any]]] = {
    "classify": [{"text": text, "label": ["low", "middle", "high"][i % 3]} for i, text in enumerate(TEXTS)],
    "regress": [{"text": text, "pair": TEXTS[i - 1], "score": i / 4} for i, text in enumerate(TEXTS)],
    "tag": [{"tokens": text.split(), "tags": ["N", "V" if i % 2 else "N"]} for i, text in enumerate(TEXTS)],
    "choose": [{"question": text, "choices": ["lute", "viol", "harp"][: 2 + i % 2], "answer": i % 2} for i, text in enumerate(TEXTS)],
    "extract": [
        {"question": "Which?", "context": text, "answers": [{"text": text.split()[1], "start": text.index(" ") + 1}]} for text in TEXTS
    ],
    "chat": chats(20),
    "causal": [{"text": text} for text in TEXTS],
}
MEASURES = {
    "classify": ["accuracy", "macro_f1", "matthews"],
    "regress": ["pearson"],
    "choose": ["accuracy"],
    "chat": ["exact_match"],
    "extract": ["exact_match"],
}


def done(folder: Path, kind: str, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """result.json and predictions.jsonl of a run."""
    data = {"path": str(write_rows(folder / f"{kind}.jsonl", ROWS[kind])), "held_out": 7}
    sections = {
        "data": data,
        "objective": {"kind": kind},
        "evaluation": MEASURES.get(kind, []),
        "training": {"steps": 2, "micro_tokens": 60},
    }
    run(Run.from_yaml(write_run(folder, **{**sections, **changes})))
    lines = (folder / "out" / "predictions.jsonl").read_text().splitlines()
    return json.loads((folder / "out" / "result.json").read_text()), [json.loads(line) for line in lines]


@pytest.mark.parametrize("kind", ROWS)
def test_the_mean_of_the_rows_is_the_held_out_loss(kind: str, tmp_path: Path) -> None:
    result, rows = done(tmp_path, kind)
    assert [row["row"] for row in rows] == list(range(7))
    labels = sum(row["labels"] for row in rows)
    assert sum(row["loss"] * row["labels"] for row in rows) / labels == pytest.approx(result["after"]["loss"], rel=1e-5)
    assert ("label" in rows[0]) == (kind not in ("chat", "causal"))


@pytest.mark.parametrize(
    "training", [{}, {"precision": "bf16", "ema": 0.5}, {"result": "best", "evaluate_every": 1, "rate": 30.0}], ids=str
)
@pytest.mark.parametrize("kind", ["classify", "chat", "choose"])
def test_one_pass_serves_the_last_evaluation_and_the_predictions(kind: str, training: dict, tmp_path: Path, monkeypatch) -> None:
    """They are to the byte what a pass of their own over the handed-over weights gives; one is made where the best weights are not the last."""
    passes = []
    monkeypatch.setattr(
        _predictions, "predictions", lambda *args, _own=_predictions.predictions, **rest: passes.append(1) or _own(*args, **rest)
    )
    data = {"path": str(write_rows(tmp_path / f"{kind}.jsonl", ROWS[kind])), "held_out": 7}
    sections = {
        "data": data,
        "objective": {"kind": kind},
        "evaluation": MEASURES[kind],
        "training": {"steps": 3, "micro_tokens": 60, **training},
    }
    config = Run.from_yaml(write_run(tmp_path, **sections))
    held: list[Ready] = []
    last(steps(config, make_ready=lambda config: held.append(prepare(config)) or held[0]))
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert len(passes) == (result["after"]["step"] != 3)
    assert kind != "chat" or bool(passes) == ("result" in training)
    predict(tmp_path, config, held[0])
    assert (tmp_path / "predictions.jsonl").read_bytes() == (tmp_path / "out" / "predictions.jsonl").read_bytes()


def test_figures_of_classes_follow_from_labels_and_predictions(tmp_path: Path) -> None:
    result, rows = done(tmp_path, "classify")
    right, found = [row["label"] for row in rows], [row["predicted"] for row in rows]
    assert set(right) <= {"low", "middle", "high"}
    assert sklearn.metrics.accuracy_score(right, found) == pytest.approx(result["after"]["accuracy"])
    assert sklearn.metrics.matthews_corrcoef(right, found) == pytest.approx(result["after"]["matthews"])
    assert all(1 / 3 <= row["score"] <= 1 for row in rows)


def test_a_score_is_the_probability_of_what_was_predicted(tmp_path: Path) -> None:
    _, rows = done(tmp_path, "classify")
    for row in rows:
        if row["label"] == row["predicted"]:
            assert row["score"] == pytest.approx(math.exp(-row["loss"]), rel=1e-4)
    assert any(row["label"] == row["predicted"] for row in rows)


def test_answers_are_kept_and_written_once_where_a_measure_asks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier import run as runs

    asked: Counter[str] = Counter()
    writer = runs.writer

    def counted(*parts: Any) -> Any:
        write = writer(*parts)
        return lambda conversations: asked.update(texts=len(conversations)) or write(conversations)

    monkeypatch.setattr(runs, "writer", counted)
    _, rows = done(tmp_path, "chat")
    assert all(isinstance(row["written"], str) for row in rows)
    assert {row["reference"] for row in rows} <= {row["messages"][1]["content"] for row in ROWS["chat"]}
    assert asked["texts"] == 2 * 7  # before and after


@pytest.mark.parametrize(
    "training", [{"result": "best", "evaluate_every": 1, "rate": 5.0}, {"precision": "bf16"}, {"ema": 0.5}], ids=["best", "bf16", "ema"]
)
def test_they_are_of_the_weights_that_were_handed_over(training: dict[str, Any], tmp_path: Path) -> None:
    result, rows = done(tmp_path, "classify", training={"steps": 6, **training})
    assert sum(row["loss"] for row in rows) / len(rows) == pytest.approx(result["after"]["loss"], rel=1e-5)


def test_without_held_out_rows_there_are_none(tmp_path: Path) -> None:
    run(Run.from_yaml(write_run(tmp_path, data={"held_out": 0}, training={"steps": 1})))
    assert not (tmp_path / "out" / "predictions.jsonl").exists()
    assert (tmp_path / "out" / "result.json").exists()
