"""Tasks on encoder-decoders and other nets without a plain stack: transformers' losses, and a step of each trains them."""

from typing import Any

import pytest
import torch
import transformers as hf

from luthier import lookup
from luthier.models.elmo import ELMo
from luthier.models.t5 import T5
from luthier.models.transformer import Vaswani
from luthier.models.transformer_xl import TransformerXL
from luthier.models.xlnet import XLNet
from luthier.objectives._batch import Size, once
from luthier.objectives.classify import Classify
from luthier.objectives.masked import Masked
from luthier.sources.foreign import wrap
from luthier.sources.model import Model

NETS: dict[str, Any] = {
    "t5": T5(vocab=258, width=16, layers=2, heads=2, head_width=8, hidden=24, start=256, dropout=0.0),
    "transformer": Vaswani(vocab=258, width=16, layers=2, decoder_layers=2, heads=2, hidden=24, positions=128, start=256, dropout=0.0),
    "transformer_xl": TransformerXL(vocab=258, width=16, layers=2, heads=2, head_width=8, hidden=24, cuts=(), divide=1, dropout=0.0),
    "xlnet": XLNet(vocab=258, width=16, layers=2, heads=2, hidden=24, dropout=0.0, label_dropout=0.0),
    "elmo": ELMo(width=8, hidden=12, vectors=4, filters=((1, 4), (2, 4)), highways=1, letters=10),
}
CONTEXT = "the cat sat on a mat ."
ROWS: dict[str, list[dict]] = {
    "classify": [{"text": "the cat", "label": 1}, {"text": "a dog", "pair": "he sat", "label": 0}, {"text": "she", "label": 1}],
    "regress": [{"text": "the", "pair": "a", "score": 1.5}, {"text": "dog", "score": -2}],
    "tag": [{"tokens": ["the", "cats"], "tags": ["O", "B"]}, {"tokens": ["a", "b", "c"], "tags": ["O", "O", "B"]}],
    "extract": [{"question": "who ?", "context": CONTEXT, "answers": [{"text": "cat", "start": 4}]}],
    "choose": [{"question": "who ?", "choices": ["he", "the cat"], "answer": 1}],
}


def ready(name: str, task: str, decoder: Any, stream: Any) -> tuple[Any, Model, Any]:
    torch.manual_seed(0)
    net, tokenizer = NETS[name].build(), decoder()[0].tokenizer
    if name == "elmo":
        net.learn_words([tokenizer.token(i) for i in range(258)])
    rows = stream(ROWS[task], form="scored" if task == "regress" else "auto")
    objective = lookup.lookup("objectives", task)().prepare(rows)
    for kind, labels in objective.heads().items():
        net.add_head(kind, labels)
    return objective, Model(net, tokenizer, source=f"a tiny {name}"), rows


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("name", NETS)
def test_a_task_trains_every_net(name, task, decoder, stream):
    objective, model, rows = ready(name, task, decoder, stream)
    (batch,) = next(objective.batches(rows, model, Size(rows=len(ROWS[task])), 100))
    optimizer = torch.optim.Adam(model.net.parameters(), 0.01)
    losses = []
    for _ in range(12):
        terms = objective.loss(model.net.hidden(**objective.inputs(batch)), model.net.heads, batch)
        loss = sum(term.sum / term.count for term in terms.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert len(objective.predict(model.net.hidden(**objective.inputs(batch)), model.net.heads, batch)) == len(ROWS[task])


def test_a_sentences_loss_is_that_of_t5s_class(decoder, stream):
    """Read at the end token of the decoder, which reads the sentence behind the start token."""
    objective, model, _ = ready("t5", "classify", decoder, stream)
    config = hf.T5Config(**model.net.config.to_config() | {"num_labels": 2, "eos_token_id": 257})
    theirs = hf.T5ForSequenceClassification(config).eval()
    names, state = model.net.config.names({"classify": 2}), model.net.state_dict()
    stored = {("" if name.path.startswith("classification") else "transformer.") + name.path: state[ours] for ours, name in names.items()}
    missing, unexpected = theirs.load_state_dict(stored, strict=False)
    assert not unexpected and all("embed_tokens" in name for name in missing)
    row = ROWS["classify"][1]
    (batch,) = once(objective, [row], model, 100)
    term = objective.loss(model.net.hidden(**objective.inputs(batch)), model.net.heads, batch)["classify"]
    want = theirs(batch.ids, decoder_input_ids=torch.cat([torch.tensor([[256]]), batch.ids[:, :-1]], 1)).logits
    ends = [i for i, token in enumerate(batch.ids[0].tolist()) if token == 257]
    assert len(ends) == 2 and batch.at["classify"].tolist() == ends[-1:]
    torch.testing.assert_close(term.sum, torch.nn.functional.cross_entropy(want, torch.tensor([0])))


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_a_transformers_object_gives_the_states_that_our_net_gives(task, decoder, stream):
    objective, model, rows = ready("t5", task, decoder, stream)
    theirs = hf.T5ForConditionalGeneration(hf.T5Config(**model.net.config.to_config())).eval()
    state = model.net.state_dict()
    theirs.load_state_dict({name.path: state[ours] for ours, name in model.net.config.names({"lm": 0}).items()}, strict=False)
    theirs.tie_weights()
    (batch,) = next(objective.batches(rows, model, Size(rows=len(ROWS[task])), 100))
    foreign = wrap(theirs).net
    torch.testing.assert_close(
        foreign.hidden(**objective.inputs(batch)), model.net.eval().hidden(**objective.inputs(batch)), atol=1e-5, rtol=1e-4
    )


def test_what_an_encoder_decoder_does_not_take_is_refused_in_words(decoder, stream):
    _, model, _ = ready("t5", "tag", decoder, stream)
    with pytest.raises(ValueError, match="objective masked needs a single stack; a tiny t5 is an encoder-decoder"):
        Masked().check(model)
    with pytest.raises(ValueError, match="lm_weight=0.5 is for decoders alone"):
        Classify(lm_weight=0.5).check(model)
