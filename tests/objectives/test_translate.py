"""Teacher forcing has transformers' loss, smoothing is torch's, and a tiny Transformer learns to turn words around."""

import random

import pytest
import torch
import transformers as hf
from torch import nn

from luthier.core.generate import generate_ids
from luthier.core.names import export_state
from luthier.core.reader import Sampling
from luthier.data.tokenizer import Tokenizer
from luthier.models.t5 import T5
from luthier.models.transformer import Vaswani
from luthier.objectives._batch import once
from luthier.objectives.translate import Translate
from luthier.sources.foreign import wrap
from luthier.sources.model import Model
from luthier.tuning._tune import tune

ROWS = [{"source": "hello", "target": "olleh"}, {"source": "a", "target": "a longer one"}, {"source": "some words", "target": "b"}]


@pytest.fixture
def pair(letters: Tokenizer):
    """(ours, theirs): T5 1.0, with a start token that is not the padding."""
    torch.manual_seed(0)
    arch = T5(vocab=258, width=16, layers=2, heads=2, head_width=8, hidden=24, start=256, dropout=0.0)
    net = arch.build().double()
    theirs = hf.T5ForConditionalGeneration(hf.T5Config(**arch.to_config())).double()
    stored = export_state(arch.names({"lm": 258}), dict(net.state_dict()))
    theirs.load_state_dict(stored | {"lm_head.weight": stored["shared.weight"]}, strict=False)
    theirs.encoder.embed_tokens = theirs.decoder.embed_tokens = theirs.shared
    return Model(net, letters, source="a tiny t5"), theirs.eval()


def loss_of(objective: Translate, model: Model, rows: list[dict] = ROWS):
    (batch,) = once(objective, rows, model, 40)
    hidden = model.net.hidden(**objective.inputs(batch))
    (term,) = objective.loss(hidden, model.net.heads, batch).values()
    return term, hidden, batch


def labels_of(model: Model, rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source ids, their mask, and targets at -100 where there are none: by hand."""
    assert model.tokenizer is not None
    sources, targets = ([[*model.tokenizer.encode(row[side]), 257] for row in rows] for side in ("source", "target"))
    wide, long = max(map(len, sources)), max(map(len, targets))
    ids = torch.tensor([[*source, *[0] * (wide - len(source))] for source in sources])
    mask = torch.tensor([[1] * len(source) + [0] * (wide - len(source)) for source in sources])
    return ids, mask, torch.tensor([[*target, *[-100] * (long - len(target))] for target in targets])


def test_the_loss_is_transformers_on_padded_rows(pair):
    ours, theirs = pair
    ids, mask, labels = labels_of(ours, ROWS)
    theirs.config.decoder_start_token_id, theirs.config.pad_token_id = 256, 257
    want = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
    term, _, _ = loss_of(Translate(), ours)
    assert term.count == int((labels >= 0).sum())
    assert (term.sum / term.count).item() == pytest.approx(want.item(), rel=1e-5)  # theirs has float32 inside


@pytest.mark.parametrize("wrapped", [False, True])
def test_smoothing_is_torchs_with_its_gradients(pair, wrapped):
    ours, _ = pair
    if wrapped:
        attached = tune(ours, "lora", roles=["head"], rank=2)
        for parameter in attached.parameters.values():
            nn.init.normal_(parameter, std=0.1)
    else:
        ours.net.requires_grad_(True)
    parameters = [p for p in ours.net.parameters() if p.requires_grad]
    term, hidden, batch = loss_of(Translate(smoothing=0.1), ours)
    found = torch.autograd.grad(term.sum, parameters, retain_graph=True, allow_unused=True)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum")
    logits = ours.net.logits(hidden)[0]
    want = criterion(logits, batch.labels["lm"])
    torch.testing.assert_close(term.sum, want)
    for ours_, theirs_ in zip(found, torch.autograd.grad(want, parameters, allow_unused=True), strict=True):
        torch.testing.assert_close(ours_, theirs_)
    with torch.no_grad():
        measured, _, _ = loss_of(Translate(smoothing=0.1), ours)
        plain, _, _ = loss_of(Translate(), ours)
    assert measured.sum == plain.sum and plain.sum != term.sum


def test_a_transformers_model_has_the_same_loss(pair):
    ours, theirs = pair
    theirs.config.decoder_start_token_id = 256
    foreign = Model(wrap(theirs).net, ours.tokenizer, source="theirs")
    (term, _, batch), (other, hidden, again) = loss_of(Translate(), ours), loss_of(Translate(), foreign)
    assert batch.ids.equal(again.ids)
    torch.testing.assert_close(other.sum, term.sum, rtol=1e-5, atol=0)
    assert len(Translate().predict(hidden, foreign.net.heads, again)) == 3


def test_the_decoder_reads_the_target_behind_the_start_and_the_end_is_learnt(pair):
    ours, _ = pair
    (batch,) = once(Translate(before="x: "), ROWS[:1], ours, 40)
    inputs = Translate().inputs(batch)
    decode = ours.tokenizer.decode
    assert decode(inputs["ids"][0].tolist(), specials=True) == "x: hello<|im_end|>"
    assert inputs["decoder_ids"][0, 0] == 256 and decode(inputs["decoder_ids"][0, 1:].tolist()) == "olleh"
    assert batch.labels["lm"][-1] == 257 and decode(batch.labels["lm"].tolist()) == "olleh"


def test_long_texts_are_cut_and_end_all_the_same(pair):
    ours, _ = pair
    (batch,) = once(Translate(), [{"source": "abcdefgh", "target": "hgfedcba"}], ours, 5)
    assert batch.lengths == (5, 5) and batch.ids[0, 4] == 257 and batch.labels["lm"][-1] == 257


def test_other_models_are_refused(decoder):
    with pytest.raises(ValueError, match="needs an encoder-decoder"):
        Translate().check(decoder()[0])
    with pytest.raises(ValueError, match="0 <= smoothing < 1"):
        Translate(smoothing=1.0)


def test_a_tiny_transformer_learns_to_turn_words_around(letters):
    """And says them, words it has not seen, by greedy and by beam search."""
    torch.manual_seed(0)
    rng = random.Random(0)
    net = Vaswani(vocab=258, width=48, layers=1, decoder_layers=1, heads=4, hidden=96, positions=32, start=256, dropout=0.0).build()
    model, objective = Model(net, letters, source="tiny"), Translate(smoothing=0.1)
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)

    def words(count: int) -> list[dict]:
        made = ["".join(rng.choices("abcd", k=rng.randint(2, 4))) for _ in range(count)]
        return [{"source": word, "target": word[::-1]} for word in made]

    for _ in range(300):
        term, _, _ = loss_of(objective, model, words(16))
        optimizer.zero_grad()
        (term.sum / term.count).backward()
        optimizer.step()
    asked = words(40)
    prompts = [[*letters.encode(row["source"]), 257] for row in asked]
    for sampling in (Sampling(max_tokens=10, temperature=0), Sampling(max_tokens=10, beams=3)):
        written = [letters.decode(row) for row in generate_ids(net.eval(), prompts, sampling, eos=[257])]
        right = sum(text == row["target"] for text, row in zip(written, asked, strict=True))
        assert right >= 36, right
