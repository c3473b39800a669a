"""Tagging against transformers' own loss; the first piece of a word carries its label, and no word is lost."""

from itertools import chain

import pytest
import torch

from luthier.data.stream import Sample
from luthier.objectives._batch import Size, encode, once
from luthier.objectives.tag import Tag

ROWS = [
    {"tokens": ["the", "unable", "dogs", "sat"], "tags": ["O", "B", "I", "O"]},
    {"tokens": ["我", "爱", "北", "京", "天"], "tags": ["O", "O", "B", "I", "I"]},
]
PIECES = [[5], [23, 24], [7, 25], [8]]  # the, un ##able, dog ##s, sat
LABELS = ("B", "I", "O")


@pytest.mark.parametrize("pieces", ["first", "all"])
def test_the_loss_is_transformers(pieces, encoder, stream, run):
    ours, theirs = encoder("BertForTokenClassification", tag=3)
    objective = Tag(pieces=pieces).prepare(stream(ROWS))
    assert (objective.labels, objective.heads()) == (LABELS, {"tag": 3})
    (batch,) = next(objective.batches(stream(ROWS), ours, Size(rows=2), 64))
    total, count = 0.0, 0
    for example, tags in zip(batch.examples, objective.references(batch), strict=True):
        words = PIECES if len(tags) == 4 else [[ours.tokenizer.id(word)] for word in ROWS[1]["tokens"]]
        labels = [-100]
        for word, tag in zip(words, tags, strict=True):
            labels += [LABELS.index(tag)] + [LABELS.index(tag) if pieces == "all" else -100] * (len(word) - 1)
        assert example.ids == [2, *chain.from_iterable(words), 3]
        output = theirs(torch.tensor([example.ids]), labels=torch.tensor([[*labels, -100]]))
        learnt = sum(label >= 0 for label in labels)
        total, count = total + output.loss * learnt, count + learnt
    torch.testing.assert_close(run(objective, ours, batch)["tag"], total / count)


@pytest.mark.parametrize("pieces", ["first", "all"])
def test_predictions_are_read_at_the_first_piece(pieces, encoder):
    ours, theirs = encoder("BertForTokenClassification", tag=3)
    objective = Tag(pieces, LABELS)
    (batch,) = once(objective, ROWS, ours, 64)
    predicted = objective.predict(ours.net.hidden(**objective.inputs(batch)), ours.net.heads, batch)
    for example, tags in zip(batch.examples, predicted, strict=True):
        best = theirs(torch.tensor([example.ids])).logits[0].argmax(-1).tolist()
        places = [1, 2, 4, 6] if example.row == 0 else [1, 2, 3, 4, 5]
        assert tags == [LABELS[best[place]] for place in places]


def test_a_long_row_is_cut_between_words(encoder):
    model, _ = encoder("BertForTokenClassification", tag=3)
    objective = Tag(labels=LABELS)
    (batch,) = once(objective, ROWS[:1], model, 5)
    assert batch.lengths == (5, 5)
    assert batch.ids.tolist() == [[2, 5, 23, 24, 3, 2, 7, 25, 8, 3]]
    assert batch.at["tag"].tolist() == [1, 2, 6, 8]
    assert [len(tags) for tags in objective.predict(model.net.hidden(**objective.inputs(batch)), model.net.heads, batch)] == [4]


def test_a_word_the_tokenizer_drops_keeps_its_place(encoder):
    model, _ = encoder("BertForTokenClassification", tag=3)
    row = {"tokens": ["the", "\u200b", "sat"], "tags": ["O", "B", "O"]}
    ((found,),) = encode(Tag(labels=LABELS), [Sample(row, 0, 0, 0)], model, 64)
    assert found.ids == [2, 5, model.tokenizer.unk, 8, 3]


def test_words_of_a_byte_vocabulary_carry_their_spaces_and_ideographs_none(decoder):
    model, _ = decoder()
    row = {"tokens": ["a", "bc", "我", "爱", "d"], "tags": ["O", "B", "O", "O", "O"]}
    ((found,),) = encode(Tag(labels=LABELS), [Sample(row, 0, 0, 0)], model, 64)
    assert model.tokenizer.decode(found.ids) == "a bc 我爱 d"


def test_words_and_tags_that_do_not_match_are_named(encoder):
    model, _ = encoder("BertForTokenClassification", tag=3)
    with pytest.raises(ValueError, match=r"2 words and 1 tags in one row; .*\"the\""):
        encode(Tag(labels=LABELS), [Sample({"tokens": ["the", "cat"], "tags": ["O"]}, 0, 0, 0)], model, 64)
