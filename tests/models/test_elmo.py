"""ELMo gives TensorFlow's activations; its parts by torch's own LSTM and by hand; and its frozen states teach a tagger."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from torch import nn

from luthier.core import recurrence
from luthier.core.cache import Cache
from luthier.core.recurrence import Highway, ProjectedLSTM
from luthier.data.tokenizer import Tokenizer
from luthier.models import elmo
from luthier.models.elmo import BiLM, ELMo
from luthier.objectives._batch import once
from luthier.objectives.tag import Tag
from luthier.sources.load import load_model
from luthier.sources.model import Model
from luthier.tuning._states import fingerprint
from luthier.tuning._tune import tune
from luthier.tuning.features import Features
from tiny import data_path

TINY = ELMo(width=6, hidden=10, vectors=4, filters=((1, 3), (2, 5)), highways=1, letters=8)


@pytest.fixture(scope="module")
def golden():
    """(net, three streams of ten sentences, what TensorFlow's top layer said of each)."""
    pytest.importorskip("h5py", reason="the published form of ELMo is read by h5py: pip install h5py")
    import h5py

    folder = data_path("elmo_fixture")
    net = load_model(folder).net
    streams = [[text.split() for text in stream] for stream in json.loads((folder / "sentences.json").read_text())]
    files = [h5py.File(folder / f"lm_embeddings_{i}.hdf5") for i in range(3)]
    wanted = [[torch.from_numpy(file[str(k)][()]) for k in range(10)] for file in files]
    return net, streams, wanted


def letters(net: BiLM, sentences: list[list[str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T, L) characters of right-padded rows, and their mask."""
    longest = max(map(len, sentences))
    size = net.config.letters
    rows = [[net.spell(word) for word in sentence] + [[0] * size] * (longest - len(sentence)) for sentence in sentences]
    mask = torch.tensor([[True] * len(sentence) + [False] * (longest - len(sentence)) for sentence in sentences])
    return torch.tensor(rows), mask


@torch.no_grad()
def furthest(net: Any, streams: Any, wanted: Any, carried: bool = True) -> float:
    """The largest difference from TensorFlow over all sentences, three at a time."""
    cache, worst = Cache(4), 0.0
    for k in range(10):
        sentences = [stream[k] for stream in streams]
        ids, mask = letters(net, sentences)
        top = net.states(ids, mask, cache=cache if carried else None)[-1]
        for i, sentence in enumerate(sentences):
            want = torch.cat([wanted[i][k][0], wanted[i][k][1]], -1)
            worst = max(worst, float((top[i, : len(sentence)] - want).abs().max()))
    return worst


def test_the_top_layer_equals_tensorflows(golden):
    assert furthest(*golden) < 5e-6


MUTANTS = {
    "no clipping": lambda net: [setattr(part, "clip", 1e9) for part in net.modules() if isinstance(part, ProjectedLSTM)],
    "no residual": lambda net: object.__setattr__(net.config, "residual", False),
    "forget bias": lambda net: [part.gates.bias.data.chunk(4)[2].sub_(1) for part in net.modules() if isinstance(part, ProjectedLSTM)],
    "gates in torch's order": lambda net: [
        part.gates.weight.data.copy_(torch.cat([part.gates.weight.data.chunk(4)[i] for i in (0, 2, 1, 3)]))
        for part in net.modules() if isinstance(part, ProjectedLSTM)
    ],
    "gates of highways turned round": lambda net: [
        setattr(part, "carry", part.transform) for part in net.modules() if isinstance(part, Highway)
    ],
    "without marks of words": lambda net: setattr(net, "spell", lambda word: [*(b + 1 for b in word.encode()), *[261] * 50][:50]),
}  # fmt: skip


@pytest.mark.parametrize("mutant", [*MUTANTS, "nothing carried"])
def test_the_golden_test_catches(mutant, golden):
    _, streams, wanted = golden
    net = load_model(data_path("elmo_fixture")).net
    if mutant in MUTANTS:
        MUTANTS[mutant](net)
    assert furthest(net, streams, wanted, carried=mutant != "nothing carried") > 1e-3


def test_a_folder_of_ours_holds_the_same_model(golden, tmp_path):
    net, streams, _ = golden
    Model(net, source="elmo").save(tmp_path / "elmo")
    again = load_model(tmp_path / "elmo").net
    ids, mask = letters(net, [stream[0] for stream in streams])
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(again.states(ids, mask), net.states(ids, mask), strict=True))
    assert again.config == net.config


@pytest.mark.parametrize("backward", [False, True])
def test_an_lstm_that_nothing_clips_is_torchs(backward):
    torch.manual_seed(0)
    ours, theirs = ProjectedLSTM(5, 7, 3, 1e9, backward).double(), nn.LSTM(5, 7, proj_size=3, batch_first=True).double()
    i, f, g, o = theirs.weight_ih_l0.chunk(4)
    with torch.no_grad():
        recurrent = [theirs.weight_hh_l0.chunk(4)[n] for n in (0, 2, 1, 3)]
        ours.gates.weight.copy_(torch.cat([torch.cat([i, g, f, o]), torch.cat(recurrent)], 1))
        bias = theirs.bias_ih_l0 + theirs.bias_hh_l0
        ours.gates.bias.copy_(torch.cat([bias.chunk(4)[n] - float(n == 1) for n in (0, 2, 1, 3)]))
        ours.project.weight.copy_(theirs.weight_hr_l0)
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    state = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    want, (h, c) = theirs(x.flip(1) if backward else x, (state[0][None], state[1][None]))
    got, after = ours(x, None, state)
    torch.testing.assert_close(got, want.flip(1) if backward else want)
    torch.testing.assert_close(after, (h[0], c[0]))


def test_a_words_characters_are_its_bytes_between_marks_and_cut():
    net = TINY.build()
    assert net.spell("né") == [259, 111, 196, 170, 260, 261, 261, 261]
    assert net.spell("longwords") == [259, *(byte + 1 for byte in b"longwo"), 260]
    net.learn_words(["a", "né"])
    assert net.vocab == 2 and net.spelling[1].tolist() == net.spell("né")
    before = fingerprint(net)
    net.learn_words(["b", "né"])
    assert fingerprint(net) != before  # states that are kept on disk are of these words


@torch.no_grad()
def test_padding_and_packing_change_nothing():
    net = TINY.build().double()
    net.learn_words([chr(97 + i) * (1 + i % 3) for i in range(20)])
    ids = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(0))
    alone = [net.states(part[:1]) for part in ids.split((4, 1, 7), 1)]
    for packed, *parts in zip(net.states(ids[:1], lengths=(4, 1, 7)), *alone, strict=True):
        torch.testing.assert_close(packed, torch.cat(parts, 1))
    mask = torch.ones(2, 12, dtype=torch.bool)
    for left in (True, False):
        mask[0] = (torch.arange(12) >= 5) if left else (torch.arange(12) < 7)
        part = ids[:1, 5:] if left else ids[:1, :7]
        torch.testing.assert_close(net.hidden(ids, mask)[0, mask[0]], net.hidden(part)[0])
    first, second = net.states(ids)[0], net.states(ids)[1]
    assert torch.equal(first[..., :6], first[..., 6:]) and second.shape == (2, 12, 12)
    changed = ids.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 20
    before, after = second[0], net.states(changed)[1][0]
    assert torch.equal(before[:8, :6], after[:8, :6]) and torch.equal(before[9:, 6:], after[9:, 6:])  # each direction knows its side


COUNTS = {"elmo-original": 93_600_848, "elmo-medium": 28_000_000, "elmo-small": 13_600_000}


@pytest.mark.parametrize("preset", COUNTS)
def test_presets_have_the_published_number_of_parameters(preset):
    """The paper's own exactly, the smaller ones to the three figures that were published."""
    with torch.device("meta"):
        net = ELMo(**ELMo.presets[preset]).build()
    found = sum(p.numel() for p in net.parameters())
    assert found == COUNTS[preset] or (preset != "elmo-original" and round(found, -5) == COUNTS[preset])


def test_frozen_states_and_vectors_of_words_teach_a_tagger(tmp_path):
    """Words are tagged by their last letter, which only the characters of unseen words tell."""
    torch.manual_seed(0)
    words = [stem + end for stem in ("run", "walk", "sing", "jump", "play", "read", "look", "cook") for end in ("ed", "ing", "er")]
    tags = {"ed": "PAST", "ing": "NOW", "er": "WHO"}
    net = ELMo(width=16, hidden=24, vectors=8, filters=((1, 8), (3, 24)), highways=1, letters=12).build()
    net.learn_words(["[UNK]", *words])
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # type: ignore[assignment]
    model = Model(net.eval(), Tokenizer(inner, unk=0), source="a tiny elmo")

    def rows(chosen: list[str]) -> list[dict]:
        return [
            {"tokens": part, "tags": [next(tag for end, tag in tags.items() if word.endswith(end)) for word in part]}
            for part in (chosen[i : i + 4] for i in range(0, len(chosen), 4))
        ]

    objective = Tag(labels=("PAST", "NOW", "WHO"))
    net.add_head("tag", 3)
    attached = tune(model, Features(cache=str(tmp_path), vectors=4))
    before = {name: value.clone() for name, value in net.state_dict().items() if not name.startswith("heads")}
    optimizer = torch.optim.Adam(attached.parameters.values(), 0.05)
    for _ in range(60):
        (batch,) = once(objective, rows(words[:18]), model, 40)
        term = objective.loss(model.net.hidden(**objective.inputs(batch)), model.net.heads, batch)["tag"]
        optimizer.zero_grad()
        (term.sum / term.count).backward()
        optimizer.step()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert {"mix.w_S", "mix.gamma", "words.weight"} < set(attached.parameters)
    (batch,) = once(objective, rows(words[18:]), model, 40)
    with torch.no_grad():
        found = objective.predict(model.net.hidden(**objective.inputs(batch)), model.net.heads, batch)
    right = [a == b for said, true in zip(found, objective.references(batch), strict=True) for a, b in zip(said, true, strict=True)]
    assert sum(right) >= 5 and len(right) == 6


def test_methods_that_need_projections_and_bad_options_are_refused():
    net = TINY.build()
    with pytest.raises(ValueError, match="no block of BiLM has the role 'q'"):
        tune(Model(net, source="elmo"), "lora", roles=["q"])
    with pytest.raises(ValueError, match="learn_words"):
        net.hidden(torch.zeros(1, 2, dtype=torch.long))
    config = TINY.to_config()
    assert ELMo.from_config(config) == TINY
    config["char_cnn"]["n_characters"] = 261
    with pytest.raises(ValueError, match="261 characters"):
        ELMo.from_config(config)
    assert elmo.FILL == 260


def test_weights_without_their_options_are_refused(tmp_path: Path):
    (tmp_path / "lm_weights.hdf5").write_bytes(b"")
    with pytest.raises(ValueError, match="one file"):
        load_model(tmp_path)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_lstms_own_backward_gives_autograds_gradients_in_every_element(monkeypatch, backward: bool, ragged: bool):
    torch.manual_seed(0)
    lstm = ProjectedLSTM(5, 7, 6, 0.4, backward).double()
    for parameter in lstm.parameters():
        parameter.data.normal_(std=0.7)
    x, mask = 2 * torch.randn(3, 9, 5, dtype=torch.float64), torch.ones(3, 9, dtype=torch.bool)
    if ragged:
        mask[1, 5:] = mask[2, 7:] = False
    before = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)

    def found(hand: bool) -> list[torch.Tensor]:
        monkeypatch.setattr(recurrence, "by_hand", lambda *tensors: hand)
        leaves = [part.clone().requires_grad_() for part in (x, *before)]
        y, (h, c) = lstm(leaves[0], mask, tuple(leaves[1:]))
        assert 0.1 < (y.abs() == 0.4).double().mean() < 0.5  # some are clipped, most are not
        sign = torch.arange(y.numel(), dtype=torch.float64).sin().view(y.shape)
        made = torch.autograd.grad((y * sign).sum() + h.square().sum() + 0.3 * c.sum(), [*leaves, *lstm.parameters()])
        return [y, h, c, *made]

    for ours, wanted in zip(found(True), found(False), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-13)
