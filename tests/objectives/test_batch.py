"""Examples are packed exactly, nothing is lost or repeated, and a restored iterator goes on to the letter."""

import json
import random

import pytest
import torch

from luthier.objectives._batch import Example, Size, collate, once, pack
from luthier.objectives._batches import Batches
from luthier.objectives.causal import Causal
from luthier.objectives.chat import Chat


def texts(count: int) -> list[dict]:
    rng = random.Random(0)
    return [{"text": f"{i}:" + "x" * rng.randrange(0, 30)} for i in range(count)]


def flat(step) -> list[tuple]:
    return [(batch.ids.tolist(), batch.lengths, batch.labels["lm"].tolist(), batch.at["lm"].tolist()) for batch in step]


def test_positions_move_by_what_stands_before():
    one, two = Example([5, 6], {"lm": [0]}, {"lm": [6]}), Example([7, 8, 9], {"lm": [0, 1]}, {"lm": [8, 9]}, prompt=2)
    batch = collate([one, two])
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.lengths == (2, 3)
    assert batch.at["lm"].tolist() == [0, 2, 3]
    assert batch.labels["lm"].tolist() == [6, 8, 9]
    assert batch.prompts == (0, 2)
    assert (batch.tokens, batch.rows, batch.labelled, batch.counts()) == (5, 2, 3, {"lm": 3})


def test_prompts_are_per_document_even_where_an_example_has_several():
    many = Example([1, 2, 3], {}, {"spans": [0, 0]}, lengths=(2, 1))
    assert collate([many, Example([4, 5], {}, {"spans": [0, 0]}, prompt=1)]).prompts == (0, 0, 1)


def test_micro_batches_keep_their_budget_and_every_example():
    examples = [Example([i] * n, {"lm": [0]}, {"lm": [i]}) for i, n in enumerate([3, 9, 4, 20, 1, 7, 2])]
    micro = pack(examples, 10)
    assert all(batch.tokens <= 10 or batch.rows == 1 for batch in micro)
    assert sorted(label for batch in micro for label in batch.labels["lm"].tolist()) == list(range(7))


@pytest.mark.parametrize("sizes", [{}, {"tokens": 8, "rows": 1}])
def test_a_step_has_tokens_or_rows(sizes):
    with pytest.raises(ValueError, match="exactly one"):
        Size(**sizes)


@pytest.mark.parametrize("size", [Size(rows=3), Size(tokens=60), Size(tokens=5)])
def test_an_epoch_of_steps_holds_every_row_once(size, stream, decoder):
    model, _ = decoder()
    rows = texts(42)
    batches = Causal().batches(stream(rows), model, size, 64)
    seen = []
    while len(seen) < 42:
        step = next(batches)
        assert size.rows is None or sum(batch.rows for batch in step) == size.rows
        assert size.tokens is None or sum(batch.tokens for batch in step) <= size.tokens or sum(batch.rows for batch in step) == 1
        before = len(seen)
        seen += [model.tokenizer.decode(example.ids) for batch in step for example in batch.examples]
        assert batches.epoch == pytest.approx(len(seen) / 42)
    assert set(seen) == {row["text"] for row in rows}
    assert len(set(seen[:before])) == before  # only the last step may reach into the next epoch


@pytest.mark.parametrize("size", [Size(rows=5), Size(tokens=90, micro_tokens=40)])
def test_a_restored_iterator_goes_on_to_the_letter(size, stream, decoder):
    model, _ = decoder()
    rows = texts(150)

    def fresh() -> Batches:
        return Causal().batches(stream(rows, seed=3), model, size, 12)  # most rows are several windows: a stop falls inside a row

    whole = fresh()
    steps, states, epochs = [], [], []
    for _ in range(80):
        states.append(json.loads(json.dumps(whole.state())))
        epochs.append(whole.epoch)
        steps.append(flat(next(whole)))
    assert whole.epoch > 1
    for at in [0, 1, *random.Random(1).sample(range(80), 6)]:
        again = fresh()
        for _ in range(at % 3):
            next(again)
        again.restore(states[at])
        assert (again.state(), again.epoch) == (states[at], epochs[at])
        assert [flat(next(again)) for _ in range(min(5, 80 - at))] == steps[at : at + 5]
    whole.restore(states[7])
    assert flat(next(whole)) == steps[7]


def test_another_seed_is_another_order(stream, decoder):
    model, _ = decoder()
    first, second = (flat(next(Causal().batches(stream(texts(50), seed=seed), model, Size(rows=10), 64))) for seed in (0, 1))
    assert first != second


def test_rows_with_nothing_to_learn_are_skipped_and_counted(stream, decoder):
    model, _ = decoder()
    short = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{i}"}]} for i in range(6)]
    long = [{"messages": [{"role": "user", "content": "q" * 99}, {"role": "assistant", "content": "a"}]} for _ in range(4)]
    batches = Chat().batches(stream(short + long), model, Size(rows=6), 60)
    next(batches)
    assert batches.epoch >= 1
    assert batches.skipped == round(10 * batches.epoch) - 6  # rows behind us that were no part of the step
    state, told = batches.state(), (batches.skipped, batches.epoch)
    next(batches)
    batches.restore(state)
    assert (batches.skipped, batches.epoch) == told


def test_data_with_nothing_to_learn_is_refused_in_words(stream, decoder):
    model, _ = decoder()
    rows = [{"messages": [{"role": "user", "content": "q" * 99}, {"role": "assistant", "content": "a"}]}] * 300
    with pytest.raises(ValueError, match="none of the 300 rows has an answer that begins within data.length=50 tokens"):
        next(Chat().batches(stream(rows), model, Size(rows=6), 50))
    with pytest.raises(ValueError, match="none of the 2 rows"):
        list(once(Chat(), rows[:2], model, 50))


def test_rows_of_another_form_are_named(stream, decoder):
    model, _ = decoder()
    with pytest.raises(ValueError, match=r"objective chat needs rows with messages, and these have text: \{\"text\": \"\d"):
        next(Chat().batches(stream(texts(3)), model, Size(rows=1), 50))


def test_once_takes_every_row_one_time(decoder):
    model, _ = decoder()
    rows = texts(300)
    found = [example for batch in once(Causal(), rows, model, 64, 200) for example in batch.examples]
    assert sorted(example.row for example in found) == list(range(300))
    assert all(model.tokenizer.decode(example.ids) == rows[example.row]["text"] for example in found)


def test_one_by_one_equals_packed(stream, decoder, run):
    model, _ = decoder()
    (batch,) = next(Causal().batches(stream(texts(9)), model, Size(rows=9), 64))
    packed = run(Causal(), model, batch)["lm"] * batch.labelled
    alone = sum(run(Causal(), model, single)["lm"] * single.labelled for single in map(collate, zip(batch.examples)))
    torch.testing.assert_close(packed, alone)
