"""Every objective keeps the contract, on a tiny model and on the real sets."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier import lookup
from luthier.data.settings import Data
from luthier.data.stream import Stream, open_stream
from luthier.models.elmo import ELMo
from luthier.models.t5 import T5
from luthier.models.xlnet import XLNet
from luthier.objectives._batch import Batch, Size, once
from luthier.objectives._objective import Objective
from luthier.sources.foreign import wrap
from luthier.sources.load import load_model, spelled
from luthier.sources.model import Model
from tiny import data_path, minilm_path, smollm2_path

CONTEXT = "the cat sat on a mat ."
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the cat"}]
ROWS: dict[str, list[dict]] = {
    "causal": [{"text": "the cat"}, {"text": "a dog sat"}, {"text": "q"}],
    "bilm": [{"text": "the cat sat on a mat"}, {"text": "a dog sat"}, {"text": "he ran"}],
    "permute": [{"text": "the cat sat on a mat over the town"}, {"text": "a dog sat"}, {"text": "he ran"}],
    "masked": [{"text": "the cat"}, {"text": "a dog sat"}, {"text": "he"}],
    "diffuse": [{"text": "the cat sat on a mat"}, {"text": "a dog sat"}, {"text": "he ran over the town"}],
    "chat": [{"messages": TALK}, {"messages": TALK * 2}, {"messages": [*TALK, TALK[0]]}],
    "classify": [{"text": "the cat", "label": 1}, {"text": "a dog", "pair": "he sat", "label": 0}, {"text": "she", "label": 1}],
    "tag": [
        {"tokens": ["the", "cats"], "tags": ["O", "B"]},
        {"tokens": ["京"], "tags": ["B"]},
        {"tokens": ["a", "b", "c"], "tags": list("OOO")},
    ],
    "extract": [
        {"question": "who ?", "context": CONTEXT, "answers": [{"text": "cat", "start": 4}]},
        {"question": "what ?", "context": "over the town", "answers": []},
        {"question": "where ?", "context": CONTEXT, "answers": [{"text": "on a mat", "start": 12}]},
    ],
    "choose": [
        {"question": "who ?", "choices": ["he", "the cat"], "answer": 1},
        {"question": "where ?", "choices": ["in town", "on a mat", "over"], "answer": 0},
        {"question": "what", "choices": ["a", "b"], "answer": 0},
    ],
    "rank": [
        {"question": "who ?", "choices": ["he", "the cat"], "answer": 1},
        {"question": "where", "choices": ["in", "on a", "over"], "answer": 0},
        {"question": "what", "choices": ["a", "b"], "answer": 0},
    ],
    "translate": [
        {"source": "the cat", "target": "un"},
        {"source": "a dog", "target": "tak wal"},
        {"source": "he", "target": "on"},
    ],
    "regress": [
        {"text": "the", "pair": "a", "score": 1.5},
        {"text": "dog", "pair": "cat sat", "score": -2},
        {"text": "he", "pair": "she", "score": 0},
    ],
}
FORM = {"regress": "scored"}
NAMES = [name for name in lookup.names("objectives") if not lookup.lookup("objectives", name).together]  # those: test_contrastive.py


def ready(name: str, encoder: Any, decoder: Any, stream: Any) -> tuple[Objective, Model, Stream]:
    """As a run does it: prepare, then the heads."""
    model = encoder("BertForMaskedLM")[0] if name not in ("causal", "chat", "rank", "translate") else decoder()[0]
    if name == "translate":
        torch.manual_seed(0)
        net = T5(vocab=258, width=16, layers=2, heads=2, head_width=8, hidden=24, start=256, dropout=0.0).build()
        model = Model(net, model.tokenizer, source="a tiny t5")
    if name == "permute":
        torch.manual_seed(0)
        xlnet = XLNet(vocab=model.tokenizer.vocab, width=16, layers=2, heads=2, hidden=24, dropout=0.0)
        model = Model(xlnet.build(), model.tokenizer, source="a tiny xlnet")
    if name == "bilm":
        torch.manual_seed(0)
        tiny = ELMo(vocab=model.tokenizer.vocab, width=8, hidden=12, vectors=4, filters=((1, 4), (2, 4)), highways=1, letters=10)
        model = spelled(Model(tiny.build(), model.tokenizer, source="a tiny elmo"))
    rows = stream(ROWS[name], form=FORM.get(name, "auto"))
    objective = lookup.lookup("objectives", name)().prepare(rows)
    for kind, labels in objective.heads().items():
        model.net.add_head(kind, labels)
    model.net.double()
    return objective, model, rows


def forward(objective: Objective, model: Model, batch: Batch) -> tuple[dict, list]:
    hidden = objective.forward(model.net, batch)
    return objective.loss(hidden, model.net.heads, batch), objective.predict(hidden, model.net.heads, batch)


def test_every_objective_is_here():
    assert set(ROWS) == set(NAMES), "give the new objective rows to be tested on"


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_counted_before_the_forward_pass(name, encoder, decoder, stream):
    objective, model, rows = ready(name, encoder, decoder, stream)
    for batch in next(objective.batches(rows, model, Size(rows=3), 48)):
        terms, _ = forward(objective, model, batch)
        assert {term: value.count for term, value in terms.items()} == batch.counts()
        assert batch.labelled > 0
        assert sum(batch.lengths) == batch.tokens
        assert max(batch.lengths) <= 48


@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_parts_has_the_whole_steps_loss_and_gradients(name, encoder, decoder, stream):
    gradients = []
    for micro_tokens in (4096, 1):
        objective, model, rows = ready(name, encoder, decoder, stream)  # a thread may still read ahead in the last stream
        micro = next(objective.batches(rows, model, Size(rows=3, micro_tokens=micro_tokens), 48))
        assert len(micro) == (1 if micro_tokens > 1 else 3)
        total = sum(batch.labelled for batch in micro)
        for batch in micro:
            (sum(term.sum for term in forward(objective, model, batch)[0].values()) / total).backward()
        gradients.append([parameter.grad.clone() for parameter in model.net.parameters() if parameter.grad is not None])
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts)


@pytest.mark.parametrize("name", NAMES)
def test_there_is_one_prediction_and_one_reference_for_each_row(name, encoder, decoder, stream):
    objective, model, _ = ready(name, encoder, decoder, stream)
    found = {}
    for batch in once(objective, ROWS[name], model, 48):
        _, predicted = forward(objective, model, batch)
        references = objective.references(batch)
        assert len(predicted) == len(references) == batch.rows
        if name != "extract":
            assert [type(item) for item in predicted] == [type(item) for item in references]
        found |= {example.row: prediction for example, prediction in zip(batch.examples, predicted, strict=True)}
    assert sorted(found) == [0, 1, 2]


@pytest.mark.parametrize("name", NAMES)
def test_packed_equals_one_by_one(name, encoder, decoder, stream):
    objective, model, _ = ready(name, encoder, decoder, stream)
    (whole,) = once(objective, ROWS[name], model, 48)
    terms, predicted = forward(objective, model, whole)
    alone = [(batch, *forward(objective, model, batch)) for batch in once(objective, ROWS[name], model, 48, micro_tokens=1)]
    for term, value in terms.items():
        torch.testing.assert_close(value.sum, sum(parts[term].sum for _, parts, _ in alone))
    single = {batch.examples[0].row: prediction for batch, _, (prediction,) in alone}
    for example, prediction in zip(whole.examples, predicted, strict=True):
        assert prediction == (pytest.approx(single[example.row]) if name == "regress" else single[example.row])


@pytest.mark.parametrize("name", ["causal", "chat", "masked", "rank"])
def test_a_transformers_model_has_the_same_loss_and_predictions(name, encoder, decoder, stream):
    objective, model, _ = ready(name, encoder, decoder, stream)
    theirs = (encoder("BertForMaskedLM") if name == "masked" else decoder())[1]
    foreign = Model(wrap(theirs).net, model.tokenizer, model.template)
    (batch,) = once(objective, ROWS[name], model, 48)
    (terms, predicted), (others, guessed) = forward(objective, model, batch), forward(objective, foreign, batch)
    for term, value in terms.items():
        torch.testing.assert_close(others[term].sum, value.sum)
    assert guessed == predicted


@pytest.mark.parametrize("name", NAMES)
def test_the_state_is_json_and_restores(name, encoder, decoder, stream):
    objective, model, rows = ready(name, encoder, decoder, stream)
    batches = objective.batches(rows, model, Size(rows=2), 48)
    for _ in range(4):
        next(batches)
    state = json.loads(json.dumps(batches.state()))
    wanted = [batch.examples for batch in next(batches)]
    batches.restore(state)
    assert [batch.examples for batch in next(batches)] == wanted


@pytest.mark.parametrize("name", NAMES)
def test_its_constants_can_be_read_without_importing_it(name):
    description = lookup.describe("objectives", name)
    assert description.title
    assert description.constants["needs"] == lookup.lookup("objectives", name).needs


REAL: dict[str, tuple[str, str, dict]] = {
    "cola": ("classify", "cola/train.tsv", {"columns": {"label": 1, "text": 3}}),
    "rte": ("classify", "rte/train.tsv", {}),
    "weibo_ner_zh": ("tag", "weibo_ner_zh/train.conll", {}),
    "alpaca_gpt4_zh": ("chat", "alpaca_gpt4_zh/alpaca_zh_demo.json", {}),
    "arc_easy": ("choose", "arc_easy/dev.jsonl", {}),
    "sick": ("regress", "sick/SICK_train.txt", {"form": "scored"}),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_set_becomes_batches(name, tmp_path):
    kind, path, settings = REAL[name]
    stream = open_stream(Data(path=str(readable(data_path(path), tmp_path)), **settings), 0)
    model = load_model(str(smollm2_path() if kind == "chat" else minilm_path()))
    objective = lookup.lookup("objectives", kind)().prepare(stream)
    batches = objective.batches(stream, model, Size(rows=64), 128)
    while batches.epoch < 0.5:
        step = next(batches)
        assert sum(batch.rows for batch in step) == 64
        assert max(max(batch.lengths) for batch in step) <= 128
    batch = next(once(objective, stream.held_out, model, 128))
    assert batch.rows == len(objective.references(batch))


def readable(path: Path, folder: Path) -> Path:
    """The set in a form that is read: columns that lie in a .txt as .tsv, sentences of a .conll as .jsonl."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".conll":  # one "character + digit, tab, tag" a line
        sentences = [[line.split("\t") for line in block.splitlines()] for block in text.strip().split("\n\n")]
        rows = [{"tokens": [pair[0][:-1] for pair in pairs], "tags": [pair[1] for pair in pairs]} for pairs in sentences]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return folder / "rows.jsonl"
    if path.suffix == ".txt":
        (folder / "rows.tsv").write_text(text, encoding="utf-8")
        return folder / "rows.tsv"
    return path
