"""LLaDA: its size, its objective by the paper's equation, and a language small enough to be learnt and written in seconds."""

import random
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from oracles import ours, reference

from luthier.core.transformer import Net
from luthier.core.unmask import Unmasking, unmask_ids
from luthier.data.stream import Sample
from luthier.models.diffusion_lm import DiffusionLM
from luthier.objectives._batch import collate, encode
from luthier.objectives.diffuse import Diffuse, hide
from luthier.sources.load import load_model
from luthier.sources.model import Model
from tiny import tiny_chat

MASK = 59


def test_llada_8b_has_the_published_number_of_parameters():
    with torch.device("meta"):
        net = DiffusionLM().build()
    assert sum(p.numel() for p in net.parameters()) == 8_015_581_184


def diffusing(words: int = 258) -> Model:
    """A tiny LLaDA over bytes, with a mask token."""
    model = tiny_chat()
    assert model.tokenizer is not None
    model.tokenizer.mask = 256
    torch.manual_seed(0)
    net = DiffusionLM(vocab=258, width=16, layers=2, heads=2, kv_heads=2, hidden=24, mask=256).build().double()
    return Model(net, model.tokenizer, model.template, source="a tiny llada")


def drawn(text: str, model: Model, objective: Diffuse | None = None, length: int = 64, **draw: int):
    sample = Sample({"text": text}, **{"epoch": 0, "index": 0, "seed": 0, **draw})
    return encode(objective or Diffuse(short=0.0), [sample], model, length)[0]


def test_the_loss_is_equation_3_by_hand():
    """sum over hidden tokens of -log p / t, over the tokens of the text."""
    net = ours("llada", reference("llada"))
    texts = [([3, 4, 5, 6], [1, 3], 0.25), ([7, 8, 9], [0], 0.5), ([10, 11], [], 0.1)]
    batch = collate([hide(ids, at, rate, len(ids), MASK) for ids, at, rate in texts])
    assert batch.ids.tolist() == [[3, MASK, 5, MASK, MASK, 8, 9, 10, 11]] and batch.counts() == {"diffuse": 9}
    term = Diffuse().loss(net.hidden(**Diffuse().inputs(batch)), net.heads, batch)["diffuse"]
    want = 0.0
    for ids, at, rate in texts:
        masked = torch.tensor([[MASK if i in at else token for i, token in enumerate(ids)]])
        logp = net(masked)[0].log_softmax(-1)
        want -= sum(logp[i, ids[i]] / rate for i in at)
    torch.testing.assert_close(term.sum, want)
    assert (term.count, term.weight) == (9, 1.0)


def test_weighted_gradients_are_those_of_torch():
    net = ours("llada", reference("llada"))
    batch = collate([hide([3, 4, 5, 6], [1, 3], 0.25, 4, MASK), hide([7, 8, 9], [0], 0.5, 3, MASK)])
    grads = []
    for plain in (False, True):
        net.zero_grad()
        hidden = net.hidden(**Diffuse().inputs(batch))
        if plain:
            losses = F.cross_entropy(net.logits(hidden[0, batch.at["diffuse"]]), batch.labels["diffuse"], reduction="none")
            (losses / torch.tensor([0.25, 0.25, 0.5])).sum().backward()
        else:
            Diffuse().loss(hidden, net.heads, batch)["diffuse"].sum.backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_in_expectation_every_token_counts_once():
    """E[hidden / t] = 1 for each token, over many draws; without 1/t it would be a half."""
    model = diffusing()
    weighted, hidden, tokens = 0.0, 0, 0
    for seed in range(4000):
        (example,) = drawn("abcdefghijklmnop", model, seed=seed)
        weighted += len(example.labels["diffuse"]) / example.note
        hidden, tokens = hidden + len(example.labels["diffuse"]), tokens + example.sizes["diffuse"]
    assert weighted / tokens == pytest.approx(1.0, abs=0.03)
    assert hidden / tokens == pytest.approx(0.5, abs=0.02)


def test_what_is_hidden_follows_from_seed_epoch_and_index_and_labels_are_what_stood_there():
    model = diffusing()
    one = drawn("hello you", model, epoch=1, index=7, seed=3)
    assert drawn("hello you", model, epoch=1, index=7, seed=3) == one
    for other in ({"epoch": 2}, {"index": 8}, {"seed": 4}):
        assert drawn("hello you", model, **{"epoch": 1, "index": 7, "seed": 3, **other})[0].note != one[0].note
    original = model.tokenizer.encode("hello you") + [257]
    for example in one:
        restored = [*example.ids]
        for at, label in zip(example.at["diffuse"], example.labels["diffuse"], strict=True):
            assert restored[at] == 256
            restored[at] = label
        assert restored == original


def test_long_texts_become_documents_and_some_are_cut_short():
    model = diffusing()
    assert [len(example.ids) for example in drawn("a" * 20, model, length=9)] == [9, 9, 5]
    lengths = [len(drawn("a" * 20, model, Diffuse(short=1.0), seed=seed)[0].ids) for seed in range(300)]
    assert min(lengths) == 1 and max(lengths) == 21 and len(set(lengths)) == 21


def test_of_a_conversation_only_answers_are_hidden_and_filled_with_end_tokens():
    model = diffusing()
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "you"}]
    text, _ = model.template.spans(talk)
    start, stop = (len(model.tokenizer.encode(text[: text.index("you") + end])) for end in (0, 3))
    for fill in (0, 16):
        found = [encode(Diffuse(fill=fill), [Sample({"messages": talk}, 0, 0, seed)], model, 200)[0][0] for seed in range(60)]
        places, length = {i for example in found for i in example.at["diffuse"]}, len(found[0].ids)
        behind = len(model.tokenizer.encode(text))
        assert places == {*range(start, stop + 1), *range(behind, length)}  # the turn's end is the answer's
        assert length == (behind if not fill else -(-behind // 16) * 16)
        assert {example.sizes["diffuse"] for example in found} == {len(places)}


def test_other_models_and_settings_are_refused():
    with pytest.raises(ValueError, match="sees later tokens"):
        Diffuse().check(tiny_chat())
    with pytest.raises(ValueError, match="short=2"):
        Diffuse(short=2)
    model = diffusing()
    model.tokenizer.mask = None
    with pytest.raises(ValueError, match="needs a mask token"):
        Diffuse().check(model)


def test_llada_survives_a_folder_and_a_switch_of_its_code_is_refused(tmp_path):
    model = diffusing()
    model.save(tmp_path)
    again = load_model(str(tmp_path))
    ids = torch.randint(0, 256, (1, 9))
    assert again.net.config == model.net.config and torch.equal(again.net(ids), model.net(ids))
    with pytest.raises(ValueError, match="asks for alibi=True"):
        DiffusionLM.from_config(model.net.config.to_config() | {"alibi": True})


def learnt(steps: int = 500) -> Net:
    """A language of two sentences: 12 ids that count up by one, or down."""
    torch.manual_seed(0)
    net = DiffusionLM(vocab=20, width=32, layers=2, heads=2, kv_heads=2, hidden=48, mask=19).build()
    optimizer, rng = torch.optim.AdamW(net.parameters(), 3e-3), random.Random(0)
    for _ in range(steps):
        examples = []
        for _ in range(32):
            start, rate = rng.randrange(7), 0.999 * rng.random() + 0.001
            ids = list(range(start, start + 12))[:: rng.choice((1, -1))]
            examples.append(hide(ids, [i for i in range(12) if rng.random() < rate], rate, 12, 19))
        batch = collate(examples)
        term = Diffuse().loss(net.hidden(batch.ids.view(32, 12)).view(1, 384, -1), net.heads, batch)["diffuse"]
        optimizer.zero_grad()
        (term.sum / term.count).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.eval()


def test_a_small_language_is_learnt_and_written():
    before, default = torch.get_default_dtype(), torch.float32
    torch.set_default_dtype(default)
    net = learnt()
    torch.set_default_dtype(before)
    how = Unmasking(max_tokens=10, block=5, steps=10)
    assert unmask_ids(net, [[3, 4], [14, 13], [5, 6]], 19, how) == [list(range(5, 15)), list(range(12, 2, -1)), list(range(7, 17))]
    free = unmask_ids(net, [[]] * 40, 19, Unmasking(max_tokens=12, block=12, steps=12, temperature=1.0), torch.Generator().manual_seed(0))
    right = [row for row in free if [b - a for a, b in zip(row, row[1:], strict=False)] in ([1] * 11, [-1] * 11)]
    assert len(right) >= 24 and len({tuple(row) for row in right}) >= 8  # 14 sentences there are
