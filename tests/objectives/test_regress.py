"""Regression against transformers' own loss."""

import pytest
import torch

from luthier.objectives._batch import Size, once
from luthier.objectives.regress import Regress

ROWS = [
    {"text": "the cat sat", "pair": "a dog ran", "score": 3.5},
    {"text": "she is in town", "pair": "he was over the mat ?", "score": -1},
]


def test_the_loss_is_transformers(encoder, stream, run):
    ours, theirs = encoder("BertForSequenceClassification", regress=1)
    (batch,) = next(Regress().batches(stream(ROWS, form="scored"), ours, Size(rows=2), 64))
    outputs = [
        theirs(
            torch.tensor([example.ids]),
            token_type_ids=torch.tensor([example.types]),
            labels=torch.tensor(example.labels["regress"]).double(),
        )
        for example in batch.examples
    ]
    torch.testing.assert_close(run(Regress(), ours, batch)["regress"], torch.stack([output.loss for output in outputs]).mean())
    predicted = Regress().predict(ours.net.hidden(**Regress().inputs(batch)), ours.net.heads, batch)
    assert predicted == pytest.approx([output.logits.item() for output in outputs])
    assert sorted(Regress().references(batch)) == [-1.0, 3.5]


def test_a_score_that_is_no_number_is_named(encoder):
    model, _ = encoder("BertForSequenceClassification", regress=1)
    with pytest.raises(ValueError, match="the score 'high' is not a number: .*the cat"):
        list(once(Regress(), [{"text": "the cat", "score": "high"}], model, 64))
