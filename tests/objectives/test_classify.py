"""Sentence and pair classification against transformers' own loss; label names found in the data."""

import pytest
import torch

from luthier.objectives._batch import Size, collate, once
from luthier.objectives.classify import Classify

ROWS = [
    {"text": "the cat sat", "label": "yes"},
    {"text": "a dog ran over the town", "label": "no"},
    {"text": "she is in town .", "label": "maybe"},
]
PAIRS = [{**row, "pair": "he was on a mat" + " ?" * i} for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("rows", [ROWS, PAIRS])
def test_the_loss_is_transformers(rows, encoder, stream, run):
    ours, theirs = encoder("BertForSequenceClassification", classify=3)
    objective = Classify().prepare(stream(rows))
    assert (objective.labels, objective.heads()) == (("maybe", "no", "yes"), {"classify": 3})
    (batch,) = next(objective.batches(stream(rows), ours, Size(rows=3), 64))
    wanted = []
    for example in batch.examples:
        types = torch.tensor([example.types or [0] * len(example.ids)])
        wanted.append(theirs(torch.tensor([example.ids]), token_type_ids=types, labels=torch.tensor(example.labels["classify"])))
    torch.testing.assert_close(run(objective, ours, batch)["classify"], torch.stack([output.loss for output in wanted]).mean())
    predicted = objective.predict(ours.net.hidden(**objective.inputs(batch)), ours.net.heads, batch)
    assert predicted == [objective.labels[int(output.logits.argmax())] for output in wanted]
    assert objective.references(batch) == [rows[[r["text"] for r in rows].index(text)]["label"] for text in read_back(ours, batch)]


def read_back(model, batch) -> list[str]:
    texts = {tuple(model.tokenizer.encode(row["text"])): row["text"] for row in ROWS}
    return [texts[tuple(example.ids[1 : example.ids.index(3)])] for example in batch.examples]


def test_a_pair_is_told_apart_by_its_segments(encoder):
    model, _ = encoder("BertForSequenceClassification", classify=3)
    (batch,) = once(Classify(labels=("maybe", "no", "yes")), PAIRS[:1], model, 64)
    first, second = len(model.tokenizer.encode(PAIRS[0]["text"])), len(model.tokenizer.encode(PAIRS[0]["pair"]))
    assert batch.extra["types"].tolist() == [[0] * (first + 2) + [1] * (second + 1)]


def test_the_longer_text_of_a_pair_is_cut(encoder):
    model, _ = encoder("BertForSequenceClassification", classify=3)
    row = {"text": "the cat", "pair": "a dog ran over the town on a mat", "label": "yes"}
    (batch,) = once(Classify(labels=("no", "yes")), [row], model, 9)
    assert model.tokenizer.decode(batch.ids[0].tolist(), specials=True) == "[CLS] the cat [SEP] a dog ran over [SEP]"


def test_a_decoder_reads_the_last_token(decoder, run):
    model, _ = decoder()
    model.net.add_head("classify", 2)
    objective = Classify(labels=("a", "b"))
    (batch,) = once(objective, [{"text": "xyz", "label": "a"}, {"text": "q", "label": "b"}], model, 64)
    assert batch.lengths == (4, 2)
    assert batch.ids[0, batch.at["classify"]].tolist() == [model.tokenizer.eos] * 2
    alone = [run(objective, model, collate([example]))["classify"] for example in batch.examples]
    torch.testing.assert_close(run(objective, model, batch)["classify"], torch.stack(alone).mean())


def test_numbers_are_labels_in_the_order_of_their_size(stream):
    rows = [{"text": "a", "label": label} for label in (10, 2, 1, 10)]
    assert Classify().prepare(stream(rows)).labels == ("1", "2", "10")


def test_labels_of_held_out_rows_count_too(stream):
    rows = [{"text": "a", "label": label} for label in "abcdefgh"]
    assert Classify().prepare(stream(rows, held_out=4)).labels == tuple("abcdefgh")


def test_finding_labels_does_not_move_the_stream(stream):
    one = stream(ROWS)
    Classify().prepare(one)
    assert one.state() == stream(ROWS).state()


def test_one_label_is_no_task(stream):
    with pytest.raises(ValueError, match="the data has yes under 'label'"):
        Classify().prepare(stream([{"text": "a", "label": "yes"}]))


def test_an_unknown_label_is_named_with_its_row(encoder):
    model, _ = encoder("BertForSequenceClassification", classify=2)
    with pytest.raises(ValueError, match=r"the label 'yse' is not among the 2 labels of this objective; did you mean 'yes'\?: .*the cat"):
        list(once(Classify(labels=("no", "yes")), [{"text": "the cat", "label": "yse"}], model, 64))
