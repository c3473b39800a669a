"""T-Few's losses against the paper's formulas written out on the logits of transformers models, in float64."""

import math

import pytest
import torch
import transformers as hf
from torch import Tensor

from luthier.core.names import export_state
from luthier.data.tokenizer import Tokenizer
from luthier.models.t5 import T5
from luthier.objectives._batch import once
from luthier.objectives.rank import Rank
from luthier.sources.model import Model

ROWS = [
    {"question": "who sat?", "choices": ["he", "the cat", "a"], "answer": 1},
    {"question": "where?", "choices": ["in town", "on"], "answer": 0},
]
NAMES = ["lm", "unlikely", "rank"]


def of_decoder(theirs, tokenizer: Tokenizer, question: str, choice: str) -> Tensor:
    """log p of the tokens of a choice."""
    before, ids = tokenizer.encode(question), tokenizer.encode(question + choice)
    logits = theirs(torch.tensor([ids]))
    scores = (logits if isinstance(logits, Tensor) else logits.logits)[0].log_softmax(-1)
    return scores[torch.arange(len(before) - 1, len(ids) - 1), ids[len(before) :]]


def by_hand(logs: list[Tensor], answer: int) -> list[Tensor]:
    """The three losses of one row, as section 3.2 writes them."""
    beta = torch.stack([log.mean() for log in logs])
    wrong = torch.cat([log for i, log in enumerate(logs) if i != answer])
    return [-beta[answer], -(1 - wrong.exp()).log().sum() / len(wrong), -(beta[answer].exp() / beta.exp().sum()).log()]


def values(terms: dict) -> list[float]:
    return [float(terms[name].sum.detach()) for name in NAMES]


def of_model(objective: Rank, model: Model, rows: list[dict], length: int = 64):
    (batch,) = once(objective, rows, model, length)
    hidden = model.net.hidden(**objective.inputs(batch))
    return objective.loss(hidden, model.net.heads, batch), objective.predict(hidden, model.net.heads, batch), batch


def test_the_losses_of_a_decoder_are_the_papers(decoder):
    ours, theirs = decoder()
    terms, predicted, batch = of_model(Rank(), ours, ROWS)
    for net, rtol in ((ours.net, 1e-12), (theirs, 1e-7)):  # theirs has float32 inside
        logs = [[of_decoder(net, ours.tokenizer, row["question"] + " ", choice) for choice in row["choices"]] for row in ROWS]
        wanted = [by_hand(each, row["answer"]) for each, row in zip(logs, ROWS, strict=True)]
        for name, each in zip(NAMES, zip(*wanted, strict=True), strict=True):
            torch.testing.assert_close(terms[name].sum, torch.stack(each).sum(), rtol=rtol, atol=0)
    assert {name: term.count for name, term in terms.items()} == batch.counts() == dict.fromkeys(NAMES, 2)
    best = {row["question"]: int(torch.stack([log.mean() for log in each]).argmax()) for each, row in zip(logs, ROWS, strict=True)}
    assert predicted == [best[ROWS[example.row]["question"]] for example in batch.examples]
    hidden = ours.net.hidden(**Rank().inputs(batch))
    shares = {row["question"]: torch.stack([log.mean() for log in each]).softmax(0).max() for each, row in zip(logs, ROWS, strict=True)}
    sure = Rank().sure(hidden, ours.net.heads, batch)
    assert sure == pytest.approx([float(shares[ROWS[example.row]["question"]].detach()) for example in batch.examples])
    assert [batch.examples[i].reference for i in range(2)] == [ROWS[example.row]["answer"] for example in batch.examples]


def test_the_losses_of_an_encoder_decoder_are_the_papers(letters):
    torch.manual_seed(0)
    arch = T5(vocab=258, width=16, layers=2, heads=2, head_width=8, hidden=24, start=256, dropout=0.0)
    net = arch.build().double()
    theirs = hf.T5ForConditionalGeneration(hf.T5Config(**arch.to_config())).double().eval()
    stored = export_state(arch.names({"lm": 258}), dict(net.state_dict()))
    theirs.load_state_dict(stored | {"lm_head.weight": stored["shared.weight"]}, strict=False)
    theirs.encoder.embed_tokens = theirs.decoder.embed_tokens = theirs.shared
    terms, _, _ = of_model(Rank(), Model(net, letters, source="a tiny t5"), ROWS)
    wanted = []
    for row in ROWS:
        logs = []
        for choice in row["choices"]:
            target = [*letters.encode(choice), 257]
            source = torch.tensor([[*letters.encode(row["question"]), 257]])
            scores = theirs(source, decoder_input_ids=torch.tensor([[256, *target[:-1]]])).logits[0].log_softmax(-1)
            logs.append(scores[torch.arange(len(target)), target])
        wanted.append(by_hand(logs, row["answer"]))
    for name, each in zip(NAMES, zip(*wanted, strict=True), strict=True):
        torch.testing.assert_close(terms[name].sum, torch.stack(each).sum(), rtol=2e-6, atol=0)  # theirs has float32 inside


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(decoder, name):
    model, _ = decoder()
    weight = model.net.blocks[0].ffn.down.weight

    def loss() -> Tensor:
        return of_model(Rank(), model, ROWS)[0][name].sum

    (found,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        ends = []
        for step in (1e-5, -2e-5):
            weight += step * direction
            ends.append(float(loss()))
        weight += 1e-5 * direction
    assert float((found * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)
    assert found.abs().min() > 0


def test_a_certain_wrong_choice_has_a_finite_loss(decoder):
    model, _ = decoder()
    with torch.no_grad():
        model.net.heads["lm"].out.weight.mul_(1e4)  # some token has probability 1 now
    terms, _, _ = of_model(Rank(), model, ROWS)
    terms["unlikely"].sum.backward()
    assert all(map(math.isfinite, values(terms)))
    assert all(bool(p.grad.isfinite().all()) for p in model.net.parameters() if p.grad is not None)


def test_words_say_labels(decoder):
    model, _ = decoder()
    rows = [{"text": "the cat", "label": 1}, {"text": "a dog", "label": "0"}]
    said = [{"question": row["text"], "choices": ["bad", "good one"], "answer": int(row["label"])} for row in rows]
    told, named, batch = of_model(Rank(template="{text} It was {choice}", words={"0": "bad", "1": "good one"}), model, rows)
    plain, numbered, _ = of_model(Rank(template="{question} It was {choice}"), model, said)
    assert values(told) == values(plain)
    assert named == [str(number) for number in numbered]
    assert {example.reference for example in batch.examples} == {"0", "1"}


def test_shots_are_solved_training_rows_before_every_question(decoder, stream):
    model, _ = decoder()
    rows = [{"question": f"q{i}", "choices": ["yes", "no"], "answer": i % 2} for i in range(6)]
    data = stream(rows, held_out=2)
    objective = Rank(shots=2).prepare(data)
    trained = {f"q{i} {['yes', 'no'][i % 2]}" for i in range(6)} - {
        f"{row['question']} {row['choices'][row['answer']]}" for row in data.held_out
    }
    shown = objective.context.split("\n\n")
    assert len(shown) == 3 and set(shown[:2]) <= trained and shown[2] == ""
    assert Rank(shots=2).prepare(stream(rows, held_out=2)) == objective
    told, _, batch = of_model(objective, model, data.held_out)
    longer = [{**row, "question": objective.context + row["question"]} for row in data.held_out]
    assert values(told) == values(of_model(Rank(), model, longer)[0])
    assert model.tokenizer.decode(batch.ids[0, : batch.lengths[0]].tolist()).startswith(objective.context)
    with pytest.raises(ValueError, match="shots=7, and there are 6 training rows"):
        Rank(shots=7).prepare(stream(rows))


def test_a_long_question_loses_its_beginning_and_a_long_choice_is_not_learnt(decoder):
    model, _ = decoder()
    (batch,) = once(Rank(), [{"question": "abcdefgh", "choices": ["xy", "z"], "answer": 0}], model, 6)
    assert batch.lengths == (6, 6)
    assert model.tokenizer.decode(batch.ids[0, :6].tolist()) == "efgh x"
    with pytest.raises(ValueError, match="none of the 1 rows has room for a choice"):
        next(once(Rank(), [{"question": "ab", "choices": ["xyzxyzxyz", "z"], "answer": 0}], model, 6))


def test_what_cannot_be_ranked_is_said(encoder, decoder):
    with pytest.raises(ValueError, match="needs a decoder"):
        Rank().check(encoder("BertForMaskedLM")[0])
    for template in ("{text}", "{choice} {text}", "{choice}"):
        with pytest.raises(ValueError, match="once, at its end"):
            Rank(template=template)
    with pytest.raises(ValueError, match=r"names \{texts\}, and the row has question, choices, answer"):
        list(once(Rank(template="{texts} {choice}"), ROWS, decoder()[0], 64))
    with pytest.raises(ValueError, match="needs rows with a label, and these have text"):
        list(once(Rank(template="{text} {choice}", words={"a": "b", "c": "d"}), [{"text": "x"}], decoder()[0], 64))
    with pytest.raises(ValueError, match="the answer is number 3, from 0, of 3 choices"):
        list(once(Rank(), [{**ROWS[0], "answer": 3}], decoder()[0], 64))
