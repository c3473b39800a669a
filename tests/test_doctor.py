"""A run that cannot come out well does not start, and says why."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import shown
from luthier import doctor
from luthier.config import build_plug_in
from luthier.data.settings import Data
from luthier.data.stream import open_stream
from luthier.doctor import Finding
from luthier.sources.model import Model
from luthier.training.settings import Training
from luthier.tuning._tune import tune
from tiny import CHATML, tiny_chat

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
LONG = {"messages": [{"role": "user", "content": "hi " * 100}, {"role": "assistant", "content": "hello"}]}
SILENT = CHATML.replace("<|im_end|>", "{{ '<|im_end|>' if message['role'] == 'user' else '' }}")


@dataclass
class Planned:
    data: Data
    output: Path
    training: Training = field(default_factory=lambda: Training(steps=3, rows=2))
    model: Any = "somewhere"


class Bench:
    """Looks at a run over rows; `look` gives the findings that are not fine, by check."""

    def __init__(self, folder: Path):
        self.folder = folder

    def look(self, rows: list[dict], model: Model, objective: Any = "chat", **settings: Any) -> dict[str, Finding]:
        path = self.folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        planned = {key: settings.pop(key) for key in ("output", "model_source", "training") if key in settings}
        data = Data(path=str(path), held_out=0, **{"length": 64, **settings})
        run = Planned(data, planned.get("output", self.folder / "run"))
        run.model, run.training = planned.get("model_source", "somewhere"), planned.get("training", run.training)
        stream = open_stream(data, 0)
        found = doctor.check(run, model, stream, build_plug_in("objectives", objective).prepare(stream))
        return {finding.check: finding for finding in found if finding.level != "fine"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_good_run_has_nothing_against_it(bench: Bench):
    assert bench.look([GOOD] * 3, tiny_chat()) == {}


def test_some_rows_without_an_answer_are_told_and_all_stop_the_run(bench: Bench):
    some = bench.look([GOOD, LONG, LONG], tiny_chat())
    assert some["rows without labels"].level == "note"
    assert some["rows without labels"].sentence.startswith("2 of the first 3 rows have nothing to learn within data.length=64")
    (every,) = bench.look([LONG] * 3, tiny_chat()).values()
    assert (every.check, every.level) == ("something to learn", "stop")
    assert "data.length=64" in every.sentence


def test_cut_rows_are_told(bench: Bench):
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello " * 50}]}
    assert bench.look([GOOD, row], tiny_chat())["cut rows"].sentence.startswith("1 of the first 2 rows")
    assert list(bench.look([row], tiny_chat())) == ["cut rows"]  # whether its end would be learnt cannot be seen


def test_an_end_token_that_is_never_learnt_stops_the_run(bench: Bench):
    found = bench.look([GOOD] * 3, tiny_chat(SILENT))
    assert found["end of answers"].level == "stop"
    assert "'<|im_end|>'" in found["end of answers"].sentence
    plain = tiny_chat()
    assert plain.tokenizer is not None
    plain.tokenizer.eos = None
    assert bench.look([{"text": "hi there"}], plain, "causal")["end of answers"].level == "stop"


def test_a_model_that_cannot_do_the_objective_stops_the_run(bench: Bench):
    model = tiny_chat()
    model.template = None
    (found,) = bench.look([GOOD], model).values()
    assert (found.check, found.level) == ("objective and model", "stop")
    assert "has no chat template" in found.sentence


LABELLED = [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}]


def test_a_head_that_is_missing_or_has_other_labels_stops_the_run(bench: Bench):
    model = tiny_chat()
    assert "needs the head 'classify' with 2 labels, and the model has lm" in bench.look(LABELLED, model, "classify")["heads"].sentence
    model.net.add_head("classify", 3)
    assert "has 3 labels and the data 2" in bench.look(LABELLED, model, "classify")["heads"].sentence
    model.net.add_head("classify", 2)
    model.net.heads["lm"].requires_grad_(False)
    assert bench.look(LABELLED, model, "classify") == {}


def test_a_head_that_would_learn_nothing_stops_the_run(bench: Bench):
    model = tiny_chat()
    model.net.requires_grad_(False)
    model.net.add_head("classify", 2)
    assert "the head 'classify' is set to train" in bench.look([GOOD], model)["heads that learn nothing"].sentence
    tune(model, "full")
    assert bench.look([GOOD], model) == {}  # all of the model trains; nobody asked for this head


def test_a_head_that_is_the_trained_embedding_is_left_in_peace(bench: Bench):
    model = tiny_chat(tied=1)
    model.net.add_head("classify", 2)
    tune(model, "lora", roles=["q"], also_train=["embed"])
    model.net.heads["classify"].requires_grad_(True)
    assert bench.look(LABELLED, model, "classify") == {}


def test_a_tokenizer_with_more_tokens_than_the_model_stops_the_run(bench: Bench):
    found = bench.look([GOOD], tiny_chat(vocab=257))
    assert "has vectors for 257" in found["vocabulary"].sentence
    assert "'<|im_end|>'" in found["vocabulary"].sentence


def test_rows_longer_than_the_learnt_positions_stop_the_run(bench: Bench):
    from luthier.models.gpt2 import GPT2

    model = tiny_chat()
    model.net = GPT2(vocab=258, width=16, layers=1, heads=2, positions=32).build()
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello " * 10}]}
    assert "set data.length=32" in bench.look([row], model, length=200)["positions"].sentence
    assert "positions" not in bench.look([row], model, length=32)
    tune(model, [{"kind": "prefix", "length": 8, "hidden": 4}, {"kind": "prompt", "length": 4}])
    found = bench.look([row], model, length=32)["positions"].sentence
    assert "takes 12 positions before it" in found and found.endswith("set data.length=20")
    assert "positions" not in bench.look([row], model, length=20)


def test_another_template_than_the_adapters_stops_the_run(bench: Bench, tmp_path: Path):
    before, now = tiny_chat(), tiny_chat(CHATML.replace("\n", " "))
    assert before.template is not None
    folder = tmp_path / "first"
    (folder / "adapter").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"template": before.template.fingerprint()}), encoding="utf-8")
    for source in (folder, folder / "adapter"):
        found = bench.look([GOOD], now, model_source=str(source))
        assert "trained with another chat template" in found["template of the adapter"].sentence
        assert bench.look([GOOD], before, model_source=str(source)) == {}


def test_a_full_disk_or_a_file_in_the_way_stops_the_run(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "is a file; output must be a folder" in bench.look([GOOD], tiny_chat(), output=tmp_path / "file")["disk"].sentence
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))  # type: ignore[attr-defined]
    assert "has 0.0 GB free" in bench.look([GOOD], tiny_chat(), output=tmp_path / "deep" / "down")["disk"].sentence


def test_a_run_needs_room_for_its_checkpoints_and_its_result():
    model = tiny_chat()
    total = sum(p.numel() for p in model.net.parameters())
    tune(model, "lora", rank=2, roles=["q"])
    trained = sum(p.numel() for p in model.net.parameters() if p.requires_grad)
    assert trained == 2 * (16 * 2 + 2 * 16)
    case = doctor.Case(Planned(Data("x"), Path("x"), Training(steps=1, rows=1, keep=3)), model, None, None)  # type: ignore[arg-type]
    assert doctor.bytes_needed(case) == 4 * trained * 3 * 5 + 4 * trained
    tune(model := tiny_chat(), "full")
    case = doctor.Case(Planned(Data("x"), Path("x"), Training(steps=1, rows=1, ema=0.9)), model, None, None)  # type: ignore[arg-type]
    assert doctor.bytes_needed(case) == 4 * total * 4 * 4 + 4 * total


def test_everything_that_stops_is_said_at_once(capsys: pytest.CaptureFixture[str]):
    found = [Finding("a"), Finding("b", "first", "stop"), Finding("c", "well", "note"), Finding("d", "second", "stop")]
    with pytest.raises(ValueError, match="^first\nsecond$"):
        doctor.refuse(found)
    doctor.refuse(found[::2])
    assert capsys.readouterr().err == "note: well\n" * 2


def test_an_objective_that_needs_its_step_whole_is_not_given_it_in_parts(bench: Bench):
    path = bench.folder / "pictures"
    rows, model = shown.captioned(bench.folder), shown.tiny_eyes(tiny_chat().tokenizer)
    assert path.is_dir()
    assert bench.look(rows, model, "contrastive", training=Training(steps=3, rows=4)) == {}
    found = bench.look(rows, model, "contrastive", training=Training(steps=3, rows=4, micro_tokens=40))
    assert "needs a whole step in one forward pass, and 4 rows of up to 13 tokens may be more" in found["one forward pass"].sentence
    found = bench.look(rows, model, "contrastive", training=Training(steps=3, tokens=90, micro_tokens=40))
    assert "training.tokens=90 may be more than training.micro_tokens=40; raise it to 90" in found["one forward pass"].sentence
    found = bench.look(rows, model, "contrastive", training=Training(steps=3, rows=1))
    assert "training.rows=1 leaves nothing to compare" in found["one forward pass"].sentence
