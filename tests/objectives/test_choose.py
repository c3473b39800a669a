"""Multiple choice against transformers' own loss, questions with unequal numbers of choices in one batch."""

import pytest
import torch

from luthier.objectives._batch import Size, once
from luthier.objectives.choose import Choose

ROWS = [
    {"question": "what sat ?", "choices": ["the cat", "a dog in town", "on a mat"], "answer": 1},
    {"question": "where is she ?", "choices": ["in town .", "over"], "answer": 0},
    {"question": "who ?", "choices": ["he", "she", "the dog", "dogs"], "answer": 3},
]


def test_the_loss_is_transformers(encoder, stream, run):
    ours, theirs = encoder("BertForMultipleChoice", choose=1)
    (batch,) = next(Choose().batches(stream(ROWS), ours, Size(rows=3), 64))
    outputs = []
    for example in batch.examples:
        assert example.types is not None
        width = max(example.lengths)
        ids, types, mask = (torch.zeros(1, len(example.lengths), width, dtype=torch.long) for _ in range(3))
        start = 0
        for i, length in enumerate(example.lengths):
            ids[0, i, :length] = torch.tensor(example.ids[start : start + length])
            types[0, i, :length] = torch.tensor(example.types[start : start + length])
            mask[0, i, :length] = 1
            start += length
        outputs.append(theirs(ids, attention_mask=mask, token_type_ids=types, labels=torch.tensor(example.labels["choose"])))
    torch.testing.assert_close(run(Choose(), ours, batch)["choose"], torch.stack([output.loss for output in outputs]).mean())
    predicted = Choose().predict(ours.net.hidden(**Choose().inputs(batch)), ours.net.heads, batch)
    assert predicted == [int(output.logits.argmax()) for output in outputs]
    assert batch.counts() == {"choose": 3}
    assert sorted(Choose().references(batch)) == [0, 1, 3]


def test_choices_are_cut_with_their_question(encoder):
    model, _ = encoder("BertForMultipleChoice", choose=1)
    (batch,) = once(Choose(), ROWS, model, 7)
    assert max(batch.lengths) == 7
    assert len(batch.lengths) == 9


def test_choices_never_part(encoder):
    model, _ = encoder("BertForMultipleChoice", choose=1)
    assert [batch.rows for batch in once(Choose(), ROWS, model, 64, micro_tokens=3)] == [1, 1, 1]


def test_an_answer_beyond_the_choices_is_named(encoder):
    model, _ = encoder("BertForMultipleChoice", choose=1)
    with pytest.raises(ValueError, match="the answer is number 2, from 0, of 2 choices: .*where is she"):
        list(once(Choose(), [{**ROWS[1], "answer": 2}], model, 64))
