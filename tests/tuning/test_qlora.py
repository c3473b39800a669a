"""QLoRA: what is quantised, against a base whose weights are the quantised ones; merging, saving, whole runs."""

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

import tinyrun
from kinds import build, logits, shake
from luthier.anatomy.anatomy import Anatomy, anatomy
from luthier.anatomy.merge import dequantise, merge
from luthier.anatomy.site import bare
from luthier.core import nf4
from luthier.core.frozen import FrozenLinear
from luthier.run import Run, run
from luthier.sources.model import Model
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made, tune
from luthier.tuning.lora import LoRA
from luthier.tuning.qlora import QLoRA

KINDS = ["our llama", "our gpt2", "our albert", "our t5", "gpt2", "llama", "t5", "phi3", "bert"]
kinds = pytest.mark.parametrize("kind", KINDS)


def by_hand(kind: str, double: bool = True) -> nn.Module:
    """The model with each projection's weight replaced by its nf4 values, the modules left as they are."""
    net = build(kind)
    body = anatomy(net)
    for path in {site.path for site in body.find(*[role for role in body.roles if not role.endswith(("norm", "attn", "ffn"))])}:
        module = bare(body.at(path).module)
        stored = module.weight.T if type(module).__name__ == "Conv1D" else module.weight  # type: ignore[union-attr]
        value = nf4.quantise(stored, double).weight()  # type: ignore[arg-type]
        module.weight.data = (value.T if type(module).__name__ == "Conv1D" else value).contiguous()  # type: ignore[union-attr]
    return net


def frozen(body: Anatomy) -> list[FrozenLinear]:
    return [module for _, module in body.modules() if isinstance(module, FrozenLinear)]


@kinds
def test_it_is_lora_over_the_quantised_weights(kind: str):
    net, plain = build(kind), by_hand(kind)
    attached = attach(anatomy(net), QLoRA(rank=3))
    lora = attach(anatomy(plain), LoRA(roles=tuple(dict.fromkeys(name.split(".")[-2] for name in attached.parameters)), rank=3))
    assert attached.parameters.keys() == lora.parameters.keys() and not any(
        p.requires_grad for p in frozen(attached.anatomy)[0].parameters()
    )
    shake(attached.parameters)
    lora.load_state(attached.state())
    torch.testing.assert_close(logits(net), logits(plain), rtol=0, atol=1e-5)
    for model in (net, plain):
        logits(model).square().mean().backward()
    for name, parameter in attached.parameters.items():
        torch.testing.assert_close(parameter.grad, lora.parameters[name].grad, rtol=1e-4, atol=1e-6)


@kinds
def test_without_the_adapter_the_quantised_base_is_left(kind: str):
    net = build(kind)
    attached = attach(anatomy(net), QLoRA(rank=3))
    shake(attached.parameters)
    body, want = attached.anatomy, logits(by_hand(kind))
    with body.using():
        torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-5)
    body.remove("default")
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-5)
    assert frozen(body) and not torch.allclose(want, logits(build(kind)), atol=1e-3)


@kinds
def test_merging_turns_the_base_back_first(kind: str):
    net = build(kind)
    attached = attach(anatomy(net), QLoRA(rank=3, roles=("q", "up")))  # the other projections come back too
    shake(attached.parameters)
    want = logits(net)
    assert merge(attached.anatomy) < 1e-4
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-4)
    fresh = build(kind)
    assert [(name, type(module)) for name, module in net.named_modules()] == [
        (name, type(module)) for name, module in fresh.named_modules()
    ]
    assert {name for name, _ in net.named_parameters()} == {name for name, _ in fresh.named_parameters()}


@kinds
def test_what_it_saves_goes_onto_a_plain_base_and_onto_a_quantised_one(kind: str, tmp_path: Path):
    net = build(kind)
    attached = attach(anatomy(net), QLoRA(rank=3))
    shake(attached.parameters)
    want = logits(net)
    attached.save(tmp_path / "adapter")
    plain = build(kind)
    assert isinstance(read(anatomy(plain), tmp_path / "adapter").method, LoRA)
    assert not torch.allclose(logits(plain), want, atol=1e-3)  # its base is another
    attached.load(tmp_path / "adapter")
    torch.testing.assert_close(logits(net), want, rtol=0, atol=0)
    assert isinstance(attached.method, QLoRA)
    other = by_hand(kind)
    read(anatomy(other), tmp_path / "adapter")
    torch.testing.assert_close(logits(other), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3", "t5", "bert"])
def test_peft_reads_it(kind: str, tmp_path: Path):
    net = build(kind)
    attached = attach(anatomy(net), QLoRA(rank=3))
    shake(attached.parameters)
    attached.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft's own imports
        theirs = PeftModel.from_pretrained(by_hand(kind), tmp_path).eval()  # type: ignore[arg-type]
    torch.testing.assert_close(logits(theirs), logits(net), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fields", [{"base": "int8"}, {"double": False}], ids=str)
def test_other_bases(fields: dict):
    net = build("our llama")
    attached = attach(anatomy(net), made("qlora", fields | {"rank": 3}))
    before = anatomy(build("our llama")).find("q")[0].weight
    error = (attached.anatomy.find("q")[0].weight - before).abs().max()
    assert 0 < error < (0.01 if "base" in fields else 0.2)
    logits(net).square().mean().backward()
    assert all(parameter.grad is not None for parameter in attached.parameters.values())
    assert merge(attached.anatomy) < 1e-4


REFUSALS = [
    ({"rank": 0}, "a rank is 1 at least"),
    ({"roles": ("gate",)}, "has the role 'gate'"),
    ({"base": "nf5"}, "nf5"),
    ({"also_train": ("heat",)}, "did you mean 'head'"),
    ({"blocks": "last 7"}, "there are 2"),
]


@pytest.mark.parametrize("fields, words", REFUSALS, ids=str)
def test_what_is_refused_is_refused_before_anything_is_quantised(fields: dict, words: str):
    model = Model(build("our gpt2"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        tune(model, "qlora", **fields)
    torch.testing.assert_close(logits(model.net), logits(build("our gpt2")), rtol=0, atol=0)
    assert not frozen(model.anatomy) and not model.anatomy.adapters
    tune(model, "qlora", rank=2)


def test_whole_weights_do_not_train_once_they_are_quantised():
    body = anatomy(build("our gpt2"))
    attach(body, QLoRA(rank=2))
    body.remove("default")
    for method, fields in [("full", {}), ("freeze", {}), ("lora", {"roles": ("q",), "also_train": ("up",)})]:
        with pytest.raises(ValueError, match="quantised"):
            attach(body, made(method, fields))
    with pytest.raises(ValueError, match="not in int8"):
        attach(body, QLoRA(base="int8"))
    attach(body, made("bitfit", {}), "biases")
    attach(body, QLoRA(rank=2), "again")
    dequantise(body)
    assert not frozen(body) and body.adapters == ("biases", "again")


def test_a_role_that_trains_whole_is_not_quantised(tmp_path: Path):
    net = build("our llama")
    attached = attach(anatomy(net), QLoRA(rank=2, also_train=("down", "embed")))
    assert not isinstance(attached.anatomy.find("down")[0].module, FrozenLinear) and len(frozen(attached.anatomy)) == 2 * 6
    shake(attached.parameters)
    attached.save(tmp_path)
    again = build("our llama")
    attach(anatomy(again), QLoRA(rank=2, also_train=("down",)), "base")
    anatomy(again).remove("base")
    read(anatomy(again), tmp_path)
    torch.testing.assert_close(logits(again), logits(net), rtol=0, atol=1e-5)


def settings(folder: Path, **training) -> Run:
    steps = {"steps": 6, "rows": 4, "rate": 0.01, "save_every": 3, "keep": 5} | training
    return Run.from_yaml(tinyrun.write_run(folder, tuning={"kind": "qlora", "rank": 4, "roles": [], "dropout": 0.1}, training=steps))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_learns_and_resumes_to_the_bit(tmp_path: Path, precision: str):
    whole = run(settings(tmp_path, precision=precision))
    assert whole.history is not None and whole.history.after["loss"] < whole.history.before["loss"]  # type: ignore[index]
    assert whole.path is not None
    first = load_file(whole.path / "adapter_model.safetensors")
    run(settings(tmp_path, precision=precision), resume=whole.folder / "checkpoints" / "step-3")
    again = load_file(whole.path / "adapter_model.safetensors")
    assert len(first) == 2 * 7 * 2
    assert whole.parameters == 8_048 + whole.trainable  # what is quantised counts
    torch.testing.assert_close(again, first, rtol=0, atol=0)
