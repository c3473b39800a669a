"""LoRA's variants: DoRA, PiSSA and LoRA+, each against peft and by its formula."""

import json
import warnings

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file

from kinds import LESS, THEIRS, build, logits, shake
from luthier.anatomy.anatomy import anatomy
from luthier.anatomy.merge import merge
from luthier.training import optimizer
from luthier.training.settings import Training
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made
from pefts import ours_of, saved_by_peft, with_peft

all_kinds = pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow if kind in LESS else ()) for kind in THEIRS])
DORA = {
    "plain": {"dora": True, "rank": 4},
    "one role": {"dora": True, "roles": ("v", "o"), "rank": 3, "rslora": True},
    "pissa": {"start": "pissa", "rank": 3, "roles": ("q", "v", "o"), "ranks": {"v": 2}},
    "both": {"start": "pissa", "dora": True, "rank": 3, "rslora": True},
}


@all_kinds
@pytest.mark.parametrize("fields", DORA.values(), ids=DORA)
def test_peft_loads_what_we_save(kind: str, fields: dict, tmp_path):
    net = build(kind)
    attached = attach(anatomy(net), made("lora", fields))
    torch.testing.assert_close(logits(net), logits(build(kind)), rtol=0, atol=1e-4)
    shake(attached.parameters)
    attached.save(tmp_path)
    torch.testing.assert_close(logits(with_peft(kind, tmp_path)), logits(net), rtol=0, atol=1e-4)
    again = build(kind)
    back = read(anatomy(again), tmp_path)
    torch.testing.assert_close(logits(again), logits(net), rtol=0, atol=1e-4)
    assert {name: p.shape for name, p in back.state().items()} == {name: p.shape for name, p in attached.state().items()}
    want = logits(net)
    assert merge(anatomy(net)) < 1e-4
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-4)


@all_kinds
@pytest.mark.parametrize("settings", [{"use_dora": True}, {"init_lora_weights": "pissa"}], ids=["dora", "pissa"])
def test_we_load_what_peft_saves(kind: str, settings: dict, tmp_path):
    want = saved_by_peft(kind, tmp_path, **settings)
    net = build(kind)
    read(anatomy(net), tmp_path)
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-4)
    assert not torch.allclose(want, logits(build(kind)), atol=1e-2)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("settings", [{"use_dora": True}, {"init_lora_weights": "pissa"}], ids=["dora", "pissa"])
def test_our_own_models_read_them_too(kind: str, settings: dict, tmp_path):
    want = saved_by_peft(kind, tmp_path, **settings)
    net = ours_of(kind)
    read(anatomy(net), tmp_path)
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-4)


def test_dora_around_an_embedding_is_pefts(tmp_path):
    net = build("llama")
    attached = attach(anatomy(net), made("lora", {"roles": ("q", "embed"), "dora": True}))
    shake(attached.parameters)
    attached.save(tmp_path)
    torch.testing.assert_close(logits(with_peft("llama", tmp_path)), logits(net), rtol=0, atol=1e-4)
    want = logits(net)
    merge(anatomy(net))
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-4)


def test_gradients_of_dora_are_pefts(tmp_path):
    """The norm is a constant to them (section 4.3)."""
    net = build("llama").double()
    attached = attach(anatomy(net), made("lora", {"dora": True}))
    shake(attached.parameters)
    attached.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(
            build("llama").double(), str(tmp_path), is_trainable=True, autocast_adapter_dtype=False
        ).eval()
    for model in (net, theirs):
        logits(model).square().sum().backward()
    found = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for end, key in [("lora_A.default.weight", "a"), ("lora_B.default.weight", "b"), ("lora_magnitude_vector.default.weight", "magnitude")]:
        want = found[f"base_model.model.model.layers.1.self_attn.v_proj.{end}"]
        torch.testing.assert_close(attached.parameters[f"decoder.1.v.{key}"].grad, want, rtol=1e-9, atol=1e-9)


def test_the_norm_without_forming_the_product_is_the_norm():
    body = anatomy(build("gpt2").double())
    attached = attach(body, made("lora", {"roles": ("v",), "dora": True}))
    shake(attached.parameters, 1.0)
    site = body.find("v", layers=0)[0]
    a, b = attached.parameters["decoder.0.v.a"], attached.parameters["decoder.0.v.b"]
    want = (site.weight + 2 * b @ a).norm(dim=1)
    torch.testing.assert_close(site.adapter("default").norm(), want.detach(), rtol=1e-12, atol=0)  # type: ignore[union-attr]


def test_a_pissa_adapter_starts_from_the_main_components_and_leaves_the_base_alone():
    net = build("llama")
    body = anatomy(net)
    before = {name: value.clone() for name, value in body.state().items()}
    attached = attach(body, made("lora", {"roles": ("q",), "start": "pissa", "rank": 32, "alpha": 64.0}))
    a, b = attached.parameters["decoder.0.q.a"], attached.parameters["decoder.0.q.b"]
    torch.testing.assert_close(2 * b @ a, body.find("q", layers=0)[0].weight, rtol=0, atol=1e-5)  # full rank: everything
    assert all(torch.equal(value, before[name]) for name, value in body.state().items())


def test_a_pissa_file_is_plain_lora_of_twice_the_rank(tmp_path):
    attach(anatomy(build("llama")), made("lora", {"start": "pissa", "rank": 3, "alpha": 6.0})).save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (6, 12, True)
    assert {min(value.shape) for value in load_file(tmp_path / "adapter_model.safetensors").values()} == {6}


def test_a_start_that_changed_the_base_is_refused_in_a_sentence(tmp_path):
    saved_by_peft("llama", tmp_path, init_lora_weights="olora")
    with pytest.raises(ValueError, match=r"olora.*changed the base"):
        read(anatomy(build("llama")), tmp_path)


def test_lora_plus_rates_are_pefts():
    attached = attach(anatomy(build("llama")), made("lora", {"b_factor": 16}))
    ours = optimizer.build(Training(steps=1, rows=1, rate=1e-3), attached.groups())
    rates = {name: group["rate"] for group in ours.param_groups for name in group["names"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
        theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    want = {id(p): group["lr"] for group in theirs.param_groups for p in group["params"]}
    named = {name: want[id(p)] for name, p in model.named_parameters() if id(p) in want}
    assert {rate for name, rate in named.items() if "lora_B" in name} == {rates[name] for name in rates if name.endswith(".b")} == {16e-3}
    assert {rate for name, rate in named.items() if "lora_A" in name} == {rates[name] for name in rates if name.endswith(".a")} == {1e-3}


@pytest.mark.parametrize(
    "fields, words",
    [({"b_factor": 0.0}, "b_factor"), ({"start": "pissa", "rank": 33}, "33"), ({"start": "pissa", "roles": ("embed",)}, "embed")],
)
def test_what_cannot_be_is_refused_in_a_sentence(fields: dict, words: str):
    net = build("llama")
    with pytest.raises(ValueError, match=words):
        attach(anatomy(net), made("lora", fields))
    assert not anatomy(net).adapters
