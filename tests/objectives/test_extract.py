"""Span extraction against transformers' own loss; windows, characters and questions without an answer."""

from typing import Any

import pytest
import torch
from torch import nn

from luthier.objectives._batch import collate, once
from luthier.objectives.extract import Extract

CONTEXT = "the cat sat on a mat . she ran over the town , he was in town ."
ROW = {"question": "who ran ?", "context": CONTEXT, "answers": [{"text": "the town", "start": CONTEXT.index("the town")}]}
BLANK = {"question": "what is 我 ?", "context": "the dog sat .", "answers": []}


def words(model: Any, ids: list[int]) -> str:
    return model.tokenizer.decode(ids, specials=True)


def test_the_loss_is_transformers(encoder, run):
    ours, theirs = encoder("BertForQuestionAnswering", spans=2)
    (batch,) = once(Extract(), [ROW, BLANK], ours, 64)
    outputs = []
    for example in batch.examples:
        start, end = example.labels["spans"]
        outputs.append(
            theirs(
                torch.tensor([example.ids]),
                token_type_ids=torch.tensor([example.types]),
                start_positions=torch.tensor([start]),
                end_positions=torch.tensor([end]),
            )
        )
    torch.testing.assert_close(run(Extract(), ours, batch)["spans"], torch.stack([output.loss for output in outputs]).mean())
    assert batch.counts() == {"spans": 4}


def test_the_answer_is_found_by_its_characters(encoder):
    model, _ = encoder("BertForQuestionAnswering", spans=2)
    for first in range(60):
        for text in (CONTEXT[first : first + 5], CONTEXT[first : first + 11]):
            ((example,),) = (batch.examples for batch in once(Extract(), [{**ROW, "answers": [{"text": text, "start": first}]}], model, 64))
            start, end = example.labels["spans"]
            inner = words(model, example.ids[start : end + 1]).replace(" ", "")
            assert text.replace(" ", "") in inner
            assert len(inner) - len(text.replace(" ", "")) < 8  # no more than the words that the answer begins and ends in


def test_no_answer_is_at_cls(encoder):
    model, _ = encoder("BertForQuestionAnswering", spans=2)
    (batch,) = once(Extract(), [BLANK], model, 64)
    assert batch.labels["spans"].tolist() == [0, 0]
    assert Extract().references(batch) == [[]]


@pytest.mark.parametrize("overlap", [0, 3])
def test_a_long_context_is_read_in_overlapping_windows(overlap, encoder):
    model, _ = encoder("BertForQuestionAnswering", spans=2)
    (batch,) = once(Extract(overlap=overlap), [ROW], model, 15)
    (example,) = batch.examples
    assert max(batch.lengths) == 15
    covered, start, held = [], 0, 0
    tokens = model.tokenizer.encode(CONTEXT)
    for i, length in enumerate(batch.lengths):
        ids = example.ids[start : start + length]
        assert words(model, ids).startswith("[CLS] who ran ? [SEP]")
        begin, end = example.labels["spans"][2 * i : 2 * i + 2]
        held += (begin, end) != (0, 0)
        assert (begin, end) == (0, 0) or words(model, ids[begin : end + 1]) == "the town"
        piece = ids[5:-1]
        covered = covered[: len(covered) - (overlap if covered else 0)] + piece
        start += length
    assert covered == tokens
    assert held >= 1
    assert example.reference == ["the town"]


class Pointing(nn.Module):
    """Scores chosen by the test: (document, position) -> score."""

    def __init__(self, batch: Any, start: dict, end: dict):
        super().__init__()
        self.scores = torch.zeros(batch.tokens, 2)
        offsets = [sum(batch.lengths[:i]) for i in range(len(batch.lengths))]
        for column, chosen in enumerate((start, end)):
            for (document, position), score in chosen.items():
                self.scores[offsets[document] + position, column] = score

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.scores


def predict(objective: Extract, batch: Any, start: dict, end: dict) -> list[str]:
    return objective.predict(torch.zeros(1, batch.tokens, 4), nn.ModuleDict({"spans": Pointing(batch, start, end)}), batch)


def test_the_prediction_is_the_best_span_of_all_windows_as_it_is_written(encoder):
    model, _ = encoder("BertForQuestionAnswering", spans=2)
    objective = Extract(overlap=0)
    (batch,) = once(objective, [{**ROW, "context": CONTEXT.replace("mat .", "MAT .")}], model, 15)
    assert predict(objective, batch, {(0, 6): 2, (1, 5): 1}, {(0, 10): 2, (1, 6): 2}) == ["cat sat on a MAT"]
    assert predict(objective, batch, {(0, 6): 2, (1, 5): 3}, {(0, 10): 2, (1, 6): 2}) == ["over the"]
    assert predict(objective, batch, {(0, 10): 9}, {(0, 6): 9, (0, 10): 1}) == ["MAT"]  # no end before its start
    assert predict(objective, batch, {(0, 1): 99, (0, 6): 1}, {(0, 3): 99, (0, 6): 1}) == ["cat"]  # nothing of the question
    assert predict(Extract(overlap=0, longest=2), batch, {(0, 6): 5}, {(0, 10): 5, (0, 7): 1}) == ["cat sat"]


def test_a_blank_beats_a_span_only_where_questions_may_lack_an_answer(encoder):
    model, _ = encoder("BertForQuestionAnswering", spans=2)
    (batch,) = once(Extract(), [BLANK], model, 64)
    position = batch.ids[0].tolist().index(3) + 2
    scores = {(0, 0): 1.0, (0, position): 1.5}, {(0, 0): 1.0, (0, position): 1.0}
    assert predict(Extract(), batch, *scores) == ["dog"]
    assert predict(Extract(unanswerable=True), batch, *scores) == ["dog"]
    assert predict(Extract(unanswerable=True, margin=1.0), batch, *scores) == [""]


def test_a_decoder_points_to_the_last_token_for_no_answer(decoder, run):
    model, _ = decoder()
    model.net.add_head("spans", 2)
    model.net.double()
    (batch,) = once(Extract(), [BLANK, {**ROW, "context": "xy the town", "answers": [{"text": "the town", "start": 3}]}], model, 64)
    blank, answer = sorted(batch.examples, key=lambda example: example.row)
    assert blank.labels["spans"] == [len(blank.ids) - 1] * 2
    start, end = answer.labels["spans"]
    assert model.tokenizer.decode(answer.ids[start : end + 1]) == "the town"
    alone = [run(Extract(), model, collate([example]))["spans"] for example in batch.examples]
    torch.testing.assert_close(run(Extract(), model, batch)["spans"], torch.stack(alone).mean())


def test_an_answer_that_is_not_there_is_named(encoder):
    model, _ = encoder("BertForQuestionAnswering", spans=2)
    with pytest.raises(ValueError, match="the answer 'the dog' does not stand at character 4 of its context, where there is 'cat sat'"):
        list(once(Extract(), [{**ROW, "answers": [{"text": "the dog", "start": 4}]}], model, 64))


def test_no_room_for_a_context_is_refused(encoder):
    model, _ = encoder("BertForQuestionAnswering", spans=2)
    with pytest.raises(ValueError, match="data.length=6 leaves no room for a context beside a question of 3 tokens"):
        list(once(Extract(), [ROW], model, 6))
