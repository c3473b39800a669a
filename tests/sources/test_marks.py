"""Pseudo-tokens of a template stand where it says, in whatever objective reads the row, and come back with the adapter."""

from pathlib import Path

import pytest
import torch

from luthier.anatomy.virtual import virtual_ids
from luthier.api import generate
from luthier.data.stream import open_stream
from luthier.evaluation._measure import measure
from luthier.objectives._batch import once
from luthier.objectives.causal import Causal
from luthier.objectives.choose import Choose
from luthier.objectives.classify import Classify
from luthier.objectives.rank import Rank
from luthier.run import Run, run
from luthier.sources.marks import MARK, marks
from luthier.sources.model import Model
from luthier.tuning._load import load
from luthier.tuning._tune import tune
from tiny import tiny_chat
from tinyrun import write_rows

TEMPLATE = "<p*2>{text}<p>?"


def tuned(template: str = TEMPLATE) -> tuple[Model, list[int]]:
    model = tiny_chat()
    tune(model, "p_tuning", template=template, encoder="mlp")
    return model, virtual_ids(model.anatomy).tolist()


def ids_of(model: Model, text: str) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode(text)


def test_a_classified_text_has_them_before_and_behind_it():
    model, (a, b, c) = tuned()
    (batch,) = once(Classify(labels=("0", "1")), [{"text": "a lute", "label": 1}], model, 32)
    assert batch.ids[0].tolist() == [a, b, *ids_of(model, "a lute"), c, *ids_of(model, "?"), 257]
    assert batch.at["classify"].tolist() == [batch.tokens - 1]


def test_a_pair_becomes_one_text():
    model, (a, b) = tuned("{pair}<p> so {text}<p>")
    (batch,) = once(Classify(labels=("0", "1")), [{"text": "is", "pair": "was", "label": 1}], model, 32)
    assert batch.ids[0].tolist() == [*ids_of(model, "was"), a, *ids_of(model, " so is"), b, 257]


@pytest.mark.parametrize("length", [8, 11, 20])
def test_of_a_text_that_is_too_long_its_end_is_cut_and_never_the_template(length: int):
    model, (a, b, c) = tuned()
    text = "the lute is tuned before it is played 琵琶弹之前要先调音"
    (batch,) = once(Classify(labels=("0", "1")), [{"text": text, "label": 1}], model, length)
    ids = batch.ids[0].tolist()
    assert ids[:2] == [a, b] and ids[-3:] == [c, *ids_of(model, "?"), 257]
    kept = ids[2:-3]
    assert kept == ids_of(model, text)[: len(kept)]
    assert length - 2 <= len(ids) <= length  # a space before the cut goes with what is cut


def test_of_two_columns_the_longer_one_is_cut():
    model, (a, b) = tuned("{pair}<p> so {text}<p>")
    (batch,) = once(Classify(labels=("0", "1")), [{"text": "is", "pair": "was " * 20, "label": 1}], model, 16)
    ids = batch.ids[0].tolist()
    assert (ids.count(a), ids.count(b)) == (1, 1)
    assert ids[ids.index(a) :] == [a, *ids_of(model, " so is"), b, 257]
    assert len(ids) <= 16


def test_a_template_that_does_not_fit_alone_is_told():
    model, _ = tuned("<p*9>{text}<p>")
    with pytest.raises(ValueError, match="a text of 6 tokens has .* of its template's 10 pseudo-tokens: data.length cuts the rest"):
        list(once(Classify(labels=("0", "1")), [{"text": "a lute", "label": 1}], model, 6))


def test_every_choice_has_them():
    model, (a,) = tuned("{question}<p>")
    (batch,) = once(Rank(), [{"question": "q", "choices": ["yes", "no"], "answer": 1}], model, 32)
    assert batch.ids[0].tolist() == [*ids_of(model, "q"), a, *ids_of(model, " ye"), *ids_of(model, "q"), a, *ids_of(model, " n")]
    (batch,) = once(Choose(), [{"question": "q", "choices": ["y", "n"], "answer": 1}], model, 32)
    assert batch.ids[0].tolist().count(a) == 2


def test_they_are_read_and_never_learnt():
    model, (a, b, c) = tuned()
    (batch,) = once(Causal(), [{"text": "ab"}], model, 32)
    assert batch.ids[0].tolist() == [a, b, *ids_of(model, "ab"), c, *ids_of(model, "?"), 257]
    assert batch.labels["lm"].tolist() == [*ids_of(model, "ab"), *ids_of(model, "?"), 257]
    assert batch.at["lm"].tolist() == [1, 2, 4, 5]


PARALLEL = {"parallel": [{"kind": "p_tuning", "template": TEMPLATE, "encoder": "mlp"}, {"kind": "lora", "rank": 2}], "names": ["p", "l"]}


def test_in_parallel_only_the_rows_of_its_adapter_have_them():
    model = tiny_chat()
    tune(model, PARALLEL)
    a, b, c = virtual_ids(model.anatomy, "default_p_tuning").tolist()
    rows = [{"text": "ab", "adapter": name} for name in ("p", "l", "p")]
    own, other = once(Causal(), rows, model, 32)
    assert own.ids[0].tolist() == 2 * [a, b, *ids_of(model, "ab"), c, *ids_of(model, "?"), 257]
    assert (other.adapter, other.ids[0].tolist()) == ("l", [*ids_of(model, "ab"), 257])


def test_a_text_that_is_read_with_and_without_them_is_refused():
    model, one = tiny_chat(), {"kind": "p_tuning", "template": TEMPLATE, "encoder": "mlp"}
    tune(model, PARALLEL)
    with pytest.raises(ValueError, match="no template would read the same text"):
        list(once(Causal(), [{"text": "ab"}], model, 32))
    (batch,) = once(Causal(), [{"text": "ab", "adapter": "l"}], model, 32)
    assert batch.tokens == len(ids_of(model, "ab")) + 1
    model = tiny_chat()
    tune(model, [one, {**one, "template": "{text}<p>"}])
    with pytest.raises(ValueError, match="stack no two templates"):
        list(once(Causal(), [{"text": "ab"}], model, 32))


def test_an_adapter_that_is_not_at_work_has_no_template():
    model, _ = tuned()
    tune(model, "lora", rank=2, name="other")
    (batch,) = once(Causal(), [{"text": "ab"}], model, 32)
    assert batch.tokens == len(ids_of(model, "ab")) + 1


def test_a_prompt_is_refused_where_they_would_be_left_out():
    model, _ = tuned()
    with pytest.raises(ValueError, match="a prompt has none: measure rows"):
        generate(model, "ab", max_tokens=2)
    with model.anatomy.using():
        assert len(generate(model, "ab", max_tokens=2)) == 1
    model = tiny_chat()
    tune(model, PARALLEL)
    assert len(generate(model, "ab", max_tokens=2, adapters="l")) == 1


def test_the_vectors_get_gradients_and_the_base_alone_has_no_template():
    model, _ = tuned()
    model.net.add_head("classify", 2)
    (batch,) = once(Classify(labels=("0", "1")), [{"text": "a lute", "label": 1}], model, 32)
    term = Classify(labels=("0", "1")).loss(model.net.hidden(ids=batch.ids, lengths=batch.lengths), model.net.heads, batch)["classify"]
    term.sum.backward()
    assert all(bool((p.grad != 0).any()) for name, p in model.attached.parameters.items() if "words" in name or "outer" in name)
    model.anatomy.activate()
    assert marks(model) is None


def test_a_run_file_trains_them_and_the_folder_brings_them_back(tmp_path: Path):
    tiny_chat().save(tmp_path / "base")
    rows = [{"text": f"{'good' if i % 2 else 'bad'} {i}", "label": i % 2} for i in range(24)]
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {tmp_path / 'base'}\ndata: {{path: {write_rows(tmp_path / 'rows.jsonl', rows)}, length: 32, held_out: 8}}\n"
        f"objective: classify\ntuning: {{kind: p_tuning, template: '{TEMPLATE}', encoder: mlp, base_rate: 1e-4}}\n"
        f"training: {{steps: 4, rows: 4, rate: 1e-2}}\nevaluation: [accuracy]\noutput: {tmp_path / 'out'}\n"
    )
    result = run(Run.from_yaml(file))
    assert result.history is not None and result.history.after is not None and result.path is not None
    model = load(str(tmp_path / "base"), result.path)
    assert marks(model) is not None and marks(model).template == TEMPLATE  # type: ignore[union-attr]
    config = Run.from_yaml(file)
    held = open_stream(config.data, config.seed).held_out
    assert measure(model, Classify(labels=("0", "1")), held, length=32)["loss"] == pytest.approx(result.history.after["loss"], rel=1e-5)


def test_a_text_without_the_mark_is_as_it_was():
    model, _ = tuned()
    plain = tiny_chat()
    assert ids_of(model, "viol viol 1") == ids_of(plain, "viol viol 1")
    marks(model).id  # type: ignore[union-attr]  # noqa: B018  now the tokenizer knows the mark
    assert model.tokenizer is not None and plain.tokenizer is not None
    assert model.tokenizer.encode_batch(["viol viol 1", "x"]) == plain.tokenizer.encode_batch(["viol viol 1", "x"])
    assert model.tokenizer.encode(f"x{MARK}y") == [*ids_of(plain, "x"), model.tokenizer.id(MARK), *ids_of(plain, "y")]


@pytest.mark.parametrize("template", ["{text}", "<p>", "<p>{}", "<p>{text", "<p>{text.x}"])
def test_what_is_no_template_is_refused(template: str):
    with pytest.raises(ValueError, match="template"):
        tune(tiny_chat(), "p_tuning", template=template)


def test_rows_that_do_not_fit_are_told():
    model, _ = tuned()
    with pytest.raises(ValueError, match="names text, and this row's columns of text are question"):
        list(once(Rank(), [{"question": "q", "choices": ["yes", "no"], "answer": 1}], model, 32))
    other, _ = tuned("<p>{choices_text}")
    with pytest.raises(ValueError, match="does not read choices_text"):
        list(once(Rank(), [{"question": "q", "choices": ["yes", "no"], "answer": 1, "choices_text": "x"}], other, 32))
    assert torch.isfinite(model.logits(torch.tensor([[1, 2, 3]]))).all()
