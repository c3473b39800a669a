"""Causal language modelling against transformers' own loss; windows; what a token can see."""

import pytest
import torch

from luthier.core.heads import LanguageHead
from luthier.objectives._batch import Size, collate, once
from luthier.objectives.causal import Causal


def test_the_loss_is_transformers(decoder, stream, run):
    ours, theirs = decoder()
    (batch,) = next(Causal().batches(stream([{"text": "the cat sat on a mat"}]), ours, Size(rows=1), 64))
    torch.testing.assert_close(run(Causal(), ours, batch)["lm"], theirs(input_ids=batch.ids, labels=batch.ids).loss, check_dtype=False)


def test_a_wrapped_head_gives_the_same_loss_and_gradients(decoder, stream, run, monkeypatch):
    class Wrapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    monkeypatch.setattr("luthier.objectives._language.BLOCK", 7)
    model, _ = decoder()
    (batch,) = next(Causal().batches(stream([{"text": "the cat sat on a mat"}]), model, Size(rows=1), 64))
    plain = run(Causal(), model, batch)["lm"]
    wanted = torch.autograd.grad(plain, list(model.net.parameters()))
    head = model.net.heads["lm"]
    model.net.heads["lm"] = LanguageHead(Wrapped(head.out), head.transform)  # type: ignore[arg-type]
    wrapped = run(Causal(), model, batch)["lm"]
    torch.testing.assert_close(wrapped, plain)
    for theirs, mine in zip(wanted, torch.autograd.grad(wrapped, list(model.net.parameters())), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("length", [2, 3, 7, 8, 9, 40])
def test_windows_learn_every_token_but_the_first_once(length, decoder):
    model, _ = decoder()
    (row,) = [{"text": "abcdefg"}]
    examples = [example for batch in once(Causal(), [row], model, length) for example in batch.examples]
    whole = [*model.tokenizer.encode("abcdefg"), model.tokenizer.eos]
    learnt = sorted(label for example in examples for label in example.labels["lm"])
    assert learnt == sorted(whole[1:])
    assert all(len(example.ids) <= length for example in examples)
    for example in examples:
        assert [example.ids[at + 1] for at in example.at["lm"]] == example.labels["lm"]


def test_the_end_token_is_learnt(decoder):
    model, _ = decoder()
    (batch,) = once(Causal(), [{"text": "ab"}], model, 8)
    assert batch.labels["lm"].tolist()[-1] == model.tokenizer.eos


def test_a_token_changes_no_logit_before_it(decoder, stream):
    model, _ = decoder()
    (batch,) = next(Causal().batches(stream([{"text": "the cat sat"}]), model, Size(rows=1), 64))
    before = model.net(**Causal().inputs(batch))
    for j in range(batch.tokens):
        kept = int(batch.ids[0, j])
        batch.ids[0, j] = (kept + 1) % 256
        after = model.net(**Causal().inputs(batch))
        batch.ids[0, j] = kept
        assert torch.equal(after[0, :j], before[0, :j])
        assert not torch.equal(after[0, j], before[0, j])


def test_predictions_are_the_likeliest_tokens(decoder, stream):
    model, theirs = decoder()
    (batch,) = next(Causal().batches(stream([{"text": "the cat"}, {"text": "a dog sat"}]), model, Size(rows=2), 64))
    with torch.no_grad():
        predicted = Causal().predict(model.net.hidden(**Causal().inputs(batch)), model.net.heads, batch)
        for example, tokens in zip(batch.examples, predicted, strict=True):
            assert tokens == theirs(input_ids=collate([example]).ids).logits[0, :-1].argmax(-1).tolist()
    assert Causal().references(batch) == [example.ids[1:] for example in batch.examples]


def test_an_encoder_is_refused(encoder, stream):
    model, _ = encoder("BertForMaskedLM")
    with pytest.raises(ValueError, match="objective causal needs a decoder; a tiny bert is an encoder"):
        Causal().batches(stream([{"text": "the cat"}]), model, Size(rows=1), 64)
