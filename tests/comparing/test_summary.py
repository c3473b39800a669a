"""Methods from cells: what is compared, by which figure, and why a test is missing."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import f1_score

from finished import predicted, write_grid, write_lines, write_run
from luthier.comparing.charts import Axis, apart, pareto
from luthier.comparing.classes import errors
from luthier.comparing.pairs import scored
from luthier.comparing.read import read
from luthier.comparing.summary import Comparison, Method, compare
from luthier.lookup import lookup


def compared(*folders: Path, metric: str | None = None) -> Comparison:
    return compare(read(folders), metric)


def named(found: Comparison, name: str) -> Method:
    return next(each for each in found.methods if each.name == name)


def test_the_difference_is_that_of_the_means_over_seeds(tmp_path: Path):
    found = compared(write_grid(tmp_path / "g", {"probe": {"accuracy": 0.6}, "lora": {"accuracy": 0.9}}))
    probe, lora = named(found, "probe"), named(found, "lora")
    assert lora.against.difference == pytest.approx(lora.figures["accuracy"].mean - probe.figures["accuracy"].mean)
    assert lora.against.low <= lora.against.difference <= lora.against.high
    assert probe.against is None
    assert [each.name for each in found.methods] == ["lora", "probe"]


def test_a_loss_is_sorted_from_below(tmp_path: Path):
    found = compared(write_grid(tmp_path / "g", {"probe": {"accuracy": 0.6}, "lora": {"accuracy": 0.9}}), metric="loss")
    assert [each.name for each in found.methods] == ["lora", "probe"]
    assert named(found, "lora").against.high < 0


def test_the_loss_of_rows_with_many_labels_weighs_labels(tmp_path: Path):
    rows = [[{"row": i, "loss": 1.0 + shift * (i % 3), "labels": 1 + i % 5} for i in range(40)] for shift in (1.0, 0.5)]
    folders = [
        write_run(tmp_path / name, tuning=name, predictions=lines, settings={"objective": "chat"})
        for name, lines in zip("ab", rows, strict=True)
    ]
    found = named(compared(*folders), "b")
    weights = [line["labels"] for line in rows[0]]
    means = [sum(line["loss"] * w for line, w in zip(lines, weights, strict=True)) / sum(weights) for lines in rows]
    assert found.against.difference == pytest.approx(means[1] - means[0])
    assert found.against.high < 0


def test_perplexity_is_worked_out_again_from_the_losses(tmp_path: Path):
    folders = []
    for name, shift in (("a", 0.0), ("b", -0.4)):
        lines = [{"row": i, "loss": 2 + shift + i % 7 / 10, "labels": 1 + i % 4} for i in range(30)]
        nats = sum(line["loss"] * line["labels"] for line in lines) / sum(line["labels"] for line in lines)
        settings = {"objective": "chat", "evaluation": [{"kind": "perplexity"}]}
        result = {"after": {"step": 1, "loss": nats, "perplexity": math.exp(nats)}}
        folders.append(write_run(tmp_path / name, tuning=name, predictions=lines, settings=settings, result=result))
    found = compared(*folders)
    assert (found.metric, found.rises, found.methods[0].name) == ("perplexity", False, "b")
    tested = named(found, "b")
    assert tested.against.difference == pytest.approx(tested.figures["perplexity"].mean - named(found, "a").figures["perplexity"].mean)
    assert tested.against.high < 0


def test_macro_f1_is_worked_out_again_on_drawn_rows(tmp_path: Path):
    folders = []
    for name, share in (("a", 0.6), ("b", 0.95)):
        lines = predicted(0, share, 80, name)
        figure = f1_score([line["label"] for line in lines], [line["predicted"] for line in lines], average="macro")
        result = {"after": {"step": 1, "loss": 1.0, "macro_f1": figure}}
        folders.append(
            write_run(tmp_path / name, tuning=name, predictions=lines, result=result, settings={"evaluation": [{"kind": "macro_f1"}]})
        )
    found = compared(*folders)
    assert found.metric == "macro_f1"
    tested = named(found, "b")
    assert tested.against.difference == pytest.approx(tested.figures["macro_f1"].mean - named(found, "a").figures["macro_f1"].mean)
    assert 0 < tested.against.low < tested.against.difference < tested.against.high


def test_written_answers_are_scored_again(tmp_path: Path):
    folders = []
    for name, share in (("a", 3), ("b", 9)):
        lines = [{"row": i, "loss": 1.0, "labels": 3, "reference": "a b", "written": "a b" if i % 10 < share else "c"} for i in range(40)]
        result = {"after": {"step": 1, "loss": 1.0, "exact_match": share / 10, "answer_f1": share / 10}}
        settings = {"evaluation": [{"kind": "exact_match"}], "objective": "chat"}
        folders.append(write_run(tmp_path / name, tuning=name, predictions=lines, result=result, settings=settings))
    found = compared(*folders)
    assert found.metric == "exact_match"
    assert named(found, "b").against.difference == pytest.approx(0.6)


@pytest.mark.parametrize("kind, metric", [("bleu", "bleu"), ("chrf", "chrf"), ("span_f1", "span_recall")])
def test_a_corpus_measure_on_drawn_rows_is_the_measure_of_those_rows(tmp_path: Path, kind: str, metric: str):
    rng = random.Random(0)
    words = ["B-a", "I-a", "O", "B-b"] if kind == "span_f1" else ["the", "cat", "sat", "on", "a", "mat"]
    names = ("predicted", "label") if kind == "span_f1" else ("written", "reference")
    rows = [[[rng.choice(words) for _ in range(6)] for _ in names] for _ in range(30)]
    rows = rows if kind == "span_f1" else [[" ".join(text) for text in row] for row in rows]
    lines = [{"row": i, "loss": 1.0, **dict(zip(names, row, strict=True))} for i, row in enumerate(rows)]
    measure = lookup("evaluation", kind)()
    whole = measure.score(*zip(*rows, strict=True))
    settings = {"objective": "chat", "evaluation": [{"kind": kind}]}
    folder = write_run(tmp_path / "a", predictions=lines, settings=settings, result={"after": {"loss": 1.0, **whole}})
    found = scored(read([folder]).cells[0], metric)
    drawn = [rng.randrange(30) for _ in range(30)]
    assert found.figure(range(30)) == pytest.approx(whole[metric], rel=1e-12)
    assert found.figure(drawn) == pytest.approx(measure.score(*zip(*(rows[i] for i in drawn), strict=True))[metric], rel=1e-12)


def without_predictions(folder: Path) -> None:
    (folder / "predictions.jsonl").unlink()


def others(folder: Path) -> None:
    write_lines(folder / "predictions.jsonl", [{**line, "predicted": "LOC"} for line in predicted(0, 0.8, 60, "b")])


@pytest.mark.parametrize(
    "spoil, why",
    [
        (without_predictions, "no predictions.jsonl"),
        (others, "does not give the reported accuracy"),
    ],
)
def test_where_rows_are_missing_or_wrong_there_is_a_reason_instead_of_a_test(tmp_path: Path, spoil: Any, why: str):
    folders = [write_run(tmp_path / name, tuning=name) for name in ("a", "b")]
    spoil(folders[1])
    found = compared(*folders)
    assert named(found, "b").against is None
    assert why in named(found, "b").reason
    assert any(why in note for note in found.notes)
    assert "accuracy" in named(found, "b").figures


def test_runs_with_other_numbers_of_rows_are_not_tested(tmp_path: Path):
    found = compared(write_run(tmp_path / "a", rows=60), write_run(tmp_path / "b", rows=40, tuning="ia3"))
    assert named(found, "b").reason == "the held-out rows are not the same"


def test_too_few_rows_are_not_tested(tmp_path: Path):
    found = compared(write_run(tmp_path / "a", rows=6), write_run(tmp_path / "b", rows=6, tuning="ia3"))
    assert "fewer than 10" in named(found, "b").reason


def test_runs_of_two_tasks_say_so_and_keep_their_costs(tmp_path: Path):
    chat = {"objective": {"kind": "chat"}, "data": {"path": "chat.jsonl", "held_out": 0.1}, "evaluation": []}
    found = compared(
        write_run(tmp_path / "a"), write_run(tmp_path / "b", settings=chat, predictions=[{"row": 0, "loss": 2.0, "labels": 5}])
    )
    assert found.metric == "loss"
    assert "different objectives (chat, classify)" in found.notes[0]
    assert all(each.against is None and each.trained == 1000 for each in found.methods)


def test_on_each_task_the_others_are_tested_against_its_first(tmp_path: Path):
    made = {("lora", "seen"): 0.6, ("ia3", "seen"): 0.9, ("lora", "unseen"): 0.9, ("ia3", "unseen"): 0.5}
    folders = []
    for (tuning, rows), accuracy in made.items():
        data = {"data": {"path": "train.jsonl", "held_out": f"{rows}.jsonl"}}
        folders.append(write_run(tmp_path / f"{tuning}-{rows}", accuracy=accuracy, tuning=tuning, settings=data))
    found = compared(*folders)
    assert [each.name for each in found.methods] == ["ia3-seen", "lora-seen", "lora-unseen", "ia3-unseen"]
    assert (found.first, found.firsts) == ("", ("lora-seen", "lora-unseen"))
    assert {each.name: each.versus for each in found.methods if each.against} == {"ia3-seen": "lora-seen", "ia3-unseen": "lora-unseen"}
    for rows, sign in (("seen", 1), ("unseen", -1)):
        difference = named(found, f"ia3-{rows}").figures["accuracy"].mean - named(found, f"lora-{rows}").figures["accuracy"].mean
        assert named(found, f"ia3-{rows}").against.difference == pytest.approx(difference)
        assert sign * difference > 0


def test_nothing_in_common_is_said_and_the_costs_stand(tmp_path: Path):
    found = compared(write_run(tmp_path / "a"), write_run(tmp_path / "b", predictions=[], tuning="full"))
    assert found.metric is None
    assert "No figure is common to all runs (nothing is held out in b)" in found.notes[0]
    assert len(found.methods) == 2


def test_a_metric_nobody_has_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no.* has a figure called 'bleu'; there are loss, accuracy"):
        compared(write_run(tmp_path / "a"), metric="bleu")


def test_without_the_first_method_nothing_is_tested(tmp_path: Path):
    found = compared(write_grid(tmp_path / "g", {"probe": {"error": "no"}, "lora": {}, "ia3": {}}))
    assert {each.reason for each in found.methods} == {"probe has no finished run"}


def test_costs_are_the_highest_peak_and_the_added_time_of_a_token(tmp_path: Path):
    times = {"latency": {"base": 1e-3, "unmerged": 1.25e-3, "merged": None}}
    folders = [write_run(tmp_path / f"lora-{i}", i, memory=memory, result=times) for i, memory in enumerate((100, 300))]
    found = compared(*folders).methods[0]
    assert (found.memory_bytes, found.tokens_per_s, found.artefact_bytes) == (300, 1500, 4000)
    assert found.added("unmerged") == pytest.approx(2.5e-4)
    assert found.added("merged") is None


def test_one_disturbed_measurement_of_a_tokens_time_does_not_count(tmp_path: Path):
    times = [(1e-3, 1.2e-3), (2e-3, 2.2e-3), (1e-3, 9e-3)]
    folders = [
        write_run(tmp_path / f"lora-{i}", i, result={"latency": {"base": base, "unmerged": slow}}) for i, (base, slow) in enumerate(times)
    ]
    assert compared(*folders).methods[0].added("unmerged") == pytest.approx(2e-4)


def test_an_older_runs_artefact_is_measured_on_disk(tmp_path: Path):
    folder = write_run(tmp_path / "a", result={"artefact_bytes": None}, trained=100)
    assert compared(folder).methods[0].artefact_bytes == 400


def test_the_pareto_front_holds_what_nothing_beats():
    # cost, worth: the second is beaten by the first, the fourth ties with the third in worth and costs more
    assert pareto([(1, 5), (2, 4), (3, 8), (4, 8), (9, 9)]) == {0, 2, 4}
    assert pareto([(1, 1), (1, 1)]) == {0, 1}


def test_a_logarithmic_axis_spaces_powers_evenly():
    axis = Axis(10, 100_000, 0, 400, log=True)
    assert [axis.place(10.0**power) for power in range(1, 6)] == [0, 100, 200, 300, 400]
    assert axis.place(0) == 0  # nothing trained stands at the low end
    assert axis.marks(5) == pytest.approx([10, 100, 1000, 10_000, 100_000])


def test_labels_are_moved_apart_and_stay_inside():
    placed = apart([50, 51, 52, 99], 10, 0, 100)
    assert all(later - earlier >= 10 - 1e-9 for earlier, later in zip(sorted(placed), sorted(placed)[1:], strict=False))
    assert 0 <= min(placed) <= max(placed) <= 100


def test_errors_by_class_are_counted_over_the_seeds(tmp_path: Path):
    lines = [{"row": i, "loss": 1.0, "label": "ab"[i % 2], "predicted": "a"} for i in range(20)]
    known = errors(compared(*(write_run(tmp_path / f"lora-{seed}", seed, predictions=lines) for seed in (0, 1))))
    assert known.classes == {"a": 10, "b": 10}
    assert (known.accuracy("lora", "a"), known.accuracy("lora", "b")) == (1, 0)
    assert known.swaps("lora") == [("b", "a", 20)]


def test_values_are_no_classes(tmp_path: Path):
    lines = [{"row": i, "loss": 1.0, "label": i / 3, "predicted": i / 4} for i in range(20)]
    assert errors(compared(write_run(tmp_path / "a", predictions=lines, settings={"evaluation": []}))) is None
