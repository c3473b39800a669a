"""Feature-based transfer: the mix by its formula, states from disk equal to computed ones, heads that train while the net stays."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.models.bert import BERT
from luthier.models.llama import Llama
from luthier.sources.model import Model
from luthier.tuning import features
from luthier.tuning._states import Documents, States
from luthier.tuning._tune import tune
from luthier.tuning.features import BiLSTM, FeatureNet, Features, Mix

IDS = torch.tensor([[2, 5, 6, 3, 2, 9, 3, 2, 7, 7, 8, 3]])
LENGTHS = (4, 3, 5)


def bert(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    net = BERT(vocab=20, width=8, layers=3, heads=2, hidden=12, positions=16, dropout=0.5).build().double()
    net.add_head("tag", 4)
    return Model(net.double().train(), source="a tiny bert")


def tuned(cache: Path, seed: int = 0, **fields: Any) -> Model:
    model = bert(seed)
    tune(model, Features(cache=str(cache), width=5, **fields))
    return model


def learnt(model: Model) -> dict[str, torch.nn.Parameter]:
    assert model.attached is not None
    return model.attached.parameters


def test_the_scalar_mix_is_gamma_times_the_softmax_weighted_sum() -> None:
    states_SND = torch.randn(4, 3, 2)
    mix = Mix(4)
    torch.testing.assert_close(mix(states_SND), states_SND.mean(0))  # where it starts
    with torch.no_grad():
        mix.w_S.copy_(torch.tensor(weights := [0.0, 1.0, 2.0, -1.0]))
        mix.gamma.fill_(3.0)
    whole = sum(math.exp(weight) for weight in weights)
    expected = 3.0 * sum(math.exp(weight) / whole * state for weight, state in zip(weights, states_SND, strict=True))
    torch.testing.assert_close(mix(states_SND), expected)


def test_vectors_of_the_tokens_stand_beside_the_mix(tmp_path: Path) -> None:
    model, plain = tuned(tmp_path, vectors=3), tuned(tmp_path)
    with torch.no_grad():
        hidden = model.net.hidden(IDS, lengths=LENGTHS)
        torch.testing.assert_close(hidden[..., :8], plain.net.hidden(IDS, lengths=LENGTHS))
        assert isinstance(model.net, FeatureNet) and model.net.words is not None
        assert torch.equal(hidden[..., 8:], model.net.words(IDS)) and model.net.heads["tag"].out.in_features == 11
    assert learnt(model).keys() - learnt(plain).keys() == {"words.weight"}


def test_hidden_is_the_mix_of_the_net_s_own_states_without_dropout(tmp_path: Path) -> None:
    model = tuned(tmp_path)
    base = bert().net.eval()
    states = base.states(IDS, lengths=LENGTHS)
    assert len(states) == 4
    with torch.no_grad():
        torch.testing.assert_close(model.net.train().hidden(IDS, lengths=LENGTHS), torch.stack(states).mean(0))


def test_the_last_states_stand_side_by_side(tmp_path: Path) -> None:
    model = tuned(tmp_path, mix="concat", last=2)
    states = bert().net.eval().states(IDS, lengths=LENGTHS)
    torch.testing.assert_close(model.net.hidden(IDS, lengths=LENGTHS), torch.cat(states[-2:], dim=-1).detach())
    assert model.net.width == 16


def test_each_document_is_computed_once_and_found_again_by_a_later_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[tuple[int, ...]] = []
    compute = States.compute
    monkeypatch.setattr(States, "compute", lambda self, documents: computed.append(documents.lengths) or compute(self, documents))
    first = tuned(tmp_path)
    whole = first.net.hidden(IDS, lengths=LENGTHS)
    some = first.net.hidden(torch.cat([IDS[:, 4:7], torch.tensor([[2, 3]]), IDS[:, 4:7]], 1), lengths=(3, 2, 3))
    torch.testing.assert_close(some[:, :3], whole[:, 4:7], rtol=0, atol=0)
    torch.testing.assert_close(some[:, 5:], whole[:, 4:7], rtol=0, atol=0)
    later = tuned(tmp_path)
    torch.testing.assert_close(later.net.hidden(IDS, lengths=LENGTHS), whole, rtol=0, atol=0)
    other = tuned(tmp_path, seed=1)
    other.net.hidden(IDS[:, :4], lengths=(4,))
    # the probe that finds the width is (1,)
    assert computed == [(1,), LENGTHS, (2,), (1,), (1,), (4,)]
    assert len(list(tmp_path.iterdir())) == 2


def test_padded_rows_read_as_packed_documents_do(tmp_path: Path) -> None:
    model = tuned(tmp_path, head="bilstm")
    padded, mask = torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 5, dtype=torch.bool)
    for row, part in enumerate(IDS[0].split(LENGTHS)):
        padded[row, 5 - len(part) :], mask[row, 5 - len(part) :] = part, True
    packed = model.net.hidden(IDS, lengths=LENGTHS)
    torch.testing.assert_close(model.net.hidden(padded, mask)[mask], packed[0])
    assert model.net.width == 10


def test_the_bilstm_is_torch_s_over_each_document_alone() -> None:
    torch.manual_seed(0)
    part, x_ND = BiLSTM(3, 4, 2, 0.0), torch.randn(9, 3)
    alone = torch.cat([part.lstm(x[:, None])[0][:, 0] for x in x_ND.split([2, 6, 1])])
    torch.testing.assert_close(part(x_ND, (2, 6, 1)), alone)


def test_only_what_stands_on_the_states_trains(tmp_path: Path) -> None:
    model = tuned(tmp_path, head="bilstm")
    names = set(learnt(model))
    assert {"mix.w_S", "mix.gamma", "heads.tag.out.weight", "heads.tag.out.bias"} < names
    assert not any(name.startswith("base") for name in names)
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    optimizer = torch.optim.SGD(learnt(model).values(), lr=0.5)
    model.net.heads["tag"](model.net.hidden(IDS, lengths=LENGTHS)).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in model.net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == names


def test_segments_are_part_of_what_names_a_document() -> None:
    ids = IDS[0, :4]
    plain, first = Documents(ids, None, (4,)), Documents(ids, torch.tensor([0, 0, 1, 1]), (4,))
    assert len({*plain.keys, *first.keys, *Documents(ids, torch.tensor([0, 1, 1, 1]), (4,)).keys}) == 3


def test_saved_heads_come_back_onto_a_fresh_base(tmp_path: Path) -> None:
    model = tuned(tmp_path / "cache", head="bilstm", mix="concat", last=2)
    model.save_adapter(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["peft_type"] == "FEATURES"
    assert set(load_file(tmp_path / "adapter/adapter_model.safetensors")) == set(learnt(model))
    again = bert()
    features.put_on(again, tmp_path / "adapter")
    with torch.no_grad():
        expected = model.net.eval().heads["tag"](model.net.hidden(IDS, lengths=LENGTHS))
        torch.testing.assert_close(again.net.heads["tag"](again.net.hidden(IDS, lengths=LENGTHS)), expected, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in again.net.parameters())


def test_a_decoder_is_read_as_well(tmp_path: Path) -> None:
    net = Llama(vocab=20, width=8, layers=2, heads=2, kv_heads=2, hidden=12).build()
    net.add_head("classify", 3)
    model = Model(net)
    tune(model, "features", cache=str(tmp_path), stored="bf16")
    assert isinstance(model.net, FeatureNet)
    assert model.net.pool == "last"
    assert model.net.hidden(IDS, lengths=LENGTHS).shape == (1, 12, 8)


def test_what_cannot_be_read_is_refused_in_words(tmp_path: Path) -> None:
    headless = Model(Llama(vocab=20, width=8, layers=2, heads=2, kv_heads=2, hidden=12).build())
    with pytest.raises(ValueError, match="trains a head, and there is none"):
        tune(headless, "features", cache=str(tmp_path))
    with pytest.raises(ValueError, match=r"features.last=9, but a token has 4 states"):
        tuned(tmp_path, last=9)
    with pytest.raises(ValueError, match="takes no prompts"):
        tuned(tmp_path).net.hidden(IDS, lengths=LENGTHS, prompts=(1, 1, 1))
    with pytest.raises(ValueError, match="width >= 1"):
        Features(width=0)


def test_a_damaged_file_of_states_is_named(tmp_path: Path) -> None:
    tuned(tmp_path).net.hidden(IDS, lengths=LENGTHS)
    path = next(tmp_path.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=path.name):
        tuned(tmp_path).net.hidden(IDS, lengths=LENGTHS)
