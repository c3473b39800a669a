"""Files of methods that peft does not have: every tensor of every adapter, by the module it is around, and what trains beside it."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import luthier.tuning
from kinds import build, kinds, logits, shake
from luthier.anatomy.anatomy import anatomy
from luthier.tuning._attached import Attached
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made

TOY = '''
"""A bottleneck of a user's own."""

from dataclasses import dataclass

import torch
from torch import nn

from luthier.anatomy.around import Adapter
from luthier.tuning._attached import Attached
from luthier.tuning._common import train_beside


@dataclass(frozen=True)
class Toy:
    roles: tuple[str, ...] = ("q", "v", "down")
    width: int = 3
    shared: bool = False
    also_train: tuple[str, ...] = ()

    def attach(self, anatomy, name="default"):
        parameters, common = {}, nn.Parameter(torch.zeros(self.width))
        for site in anatomy.find(*self.roles):
            adapter = Bottleneck(site.weight.shape[0], self.width, common if self.shared else nn.Parameter(torch.zeros(self.width)))
            site.wrap(name, adapter)
            parameters |= {f"{site.address}.{key}": value for key, value in adapter.named_parameters()}
        return Attached(anatomy, name, self, parameters | train_beside(anatomy, name, self.also_train))


class Bottleneck(Adapter):
    def __init__(self, width, hidden, shift):
        super().__init__()
        self.inner = nn.ModuleDict({"down": nn.Linear(width, hidden), "up": nn.Linear(hidden, width, bias=False)})
        self.shift = shift
        nn.init.zeros_(self.inner["up"].weight)

    def forward(self, base, x):
        y = base(x)
        return y + self.inner["up"](torch.tanh(self.inner["down"](y) + self.shift))
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands on the shelf for one test; the folder for adapters beside it."""
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "toy.py").write_text(TOY)
    monkeypatch.setattr(luthier.tuning, "__path__", [*luthier.tuning.__path__, str(tmp_path / "shelf")])
    monkeypatch.delitem(sys.modules, "luthier.tuning.toy", raising=False)
    return tmp_path / "adapter"


def saved(kind: str, folder: Path, **fields) -> tuple[Attached, Tensor]:
    net = build(kind)
    attached = attach(anatomy(net), made("toy", fields))
    shake(attached.parameters, 0.3)
    attached.save(folder)
    return attached, logits(net)


def same(kind: str, folder: Path, want: Tensor, attached: Attached) -> nn.Module:
    net = build(kind)
    back = read(anatomy(net), folder)
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-4)  # a product's last bits hang on where its tensors lie
    for name, value in attached.parameters.items():
        torch.testing.assert_close(back.parameters[name], value, rtol=0, atol=0)
    assert back.method == attached.method and back.parameters.keys() == attached.parameters.keys()
    return net


@kinds
def test_any_adapter_comes_back_from_its_folder(kind: str, toy: Path):
    attached, want = saved(kind, toy, roles=("q", "v") if kind == "mixtral" else ("q", "v", "down"))
    net = same(kind, toy, want, attached)
    assert not torch.allclose(want, logits(build(kind)))
    assert not any(p.requires_grad for _, around in anatomy(net).arounds() for p in around.adapters.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "our gpt2", "bert", "our t5"])
def test_parts_that_train_beside_it_come_back_too(kind: str, toy: Path):
    attached, want = saved(kind, toy, roles=("q", "down"), also_train=("embed", "k"))
    same(kind, toy, want, attached)


@pytest.mark.parametrize("kind", ["llama", "our gpt2"])
def test_a_parameter_that_places_share_is_stored_once_and_shared_again(kind: str, toy: Path):
    attached, want = saved(kind, toy, shared=True)
    same(kind, toy, want, attached)
    assert len([name for name in load_file(toy / "adapter_model.safetensors") if name.endswith("shift")]) == 1


@pytest.mark.parametrize("kind, module", [("gpt2", "transformer.h.0.attn.c_attn.q"), ("llama", "model.layers.0.self_attn.q_proj")])
def test_tensors_stand_under_the_modules_of_the_checkpoint(kind: str, module: str, toy: Path):
    saved(f"our {kind}", toy)
    ours = load_file(toy / "adapter_model.safetensors").keys()
    saved(kind, toy)
    assert ours == load_file(toy / "adapter_model.safetensors").keys()
    assert f"base_model.model.{module}.inner.down.weight" in ours


def test_what_does_not_fit_is_named_and_nothing_changes(toy: Path):
    saved("llama", toy)
    path = toy / "adapter_model.safetensors"
    tensors = load_file(path)
    first, _, third, *_ = sorted(tensors)
    for change, words in [
        ({first: None}, ("missing", first)),
        ({"base_model.model.lm_head.other": torch.zeros(2)}, ("unexpected", "lm_head.other")),
        ({third: torch.zeros(7)}, ("of another shape", "(7,)", str(tuple(tensors[third].shape)))),
    ]:
        save_file({name: value for name, value in (tensors | change).items() if value is not None}, path)
        net = build("llama")
        with pytest.raises(ValueError) as error:
            read(anatomy(net), toy)
        assert all(word.removeprefix("base_model.model.") in str(error.value) for word in words), error.value
        assert not anatomy(net).adapters
        torch.testing.assert_close(logits(net), logits(build("llama")), rtol=0, atol=0)


def test_what_a_method_remembers_goes_with_its_state():
    attached = attach(anatomy(build("llama")), made("lora", {}))
    attached.memory = {"importance": torch.zeros(3)}
    state = {name: value.clone() for name, value in attached.state().items()}
    attached.memory["importance"].fill_(5.0)
    attached.load_state(state)
    assert attached.memory["importance"].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="missing: importance"):
        attached.load_state({name: value for name, value in state.items() if name != "importance"})


def test_a_configuration_that_was_changed_by_hand_is_told_with_all_that_is_wrong(tmp_path: Path):
    net = build("llama")
    attach(anatomy(net), made("lora", {"rank": 2})).save(tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    for changes, words in [
        ({"r": None, "target_modules": 7}, ("r is missing", "target_modules must be a list of names or a pattern, not 7")),
        ({"lora_alpha": "much", "rank_pattern": []}, ('lora_alpha must be a number, not "much"', "rank_pattern must be a table")),
        ({"r": True}, ("r must be a whole number, not true",)),
    ]:
        path.write_text(json.dumps(config | changes))
        with pytest.raises(ValueError) as error:
            read(anatomy(build("llama")), tmp_path)
        assert all(word in str(error.value) for word in words), error.value
