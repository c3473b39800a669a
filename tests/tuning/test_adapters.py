"""Folders that the library adapters has written (adapters_1.3.0/make.py): converted without running them, read, equal in what they say."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration
from typer.testing import CliRunner

from luthier.anatomy.anatomy import anatomy
from luthier.cli.main import app
from luthier.sources.convert import convert_pickles
from luthier.tuning._load import load
from luthier.tuning._read import read
from tuning.test_adapter import base

HERE = Path(__file__).with_name("adapters_1.3.0")
CASES = [path.name for path in sorted(HERE.iterdir()) if (path / "adapter_config.json").is_file() and "head" not in path.name]
HEADS = {"classification": "classify", "tagging": "tag", "qa": "spans"}


@cache
def expected() -> dict[str, Tensor]:
    return load_file(HERE / "expected.safetensors")


def net_of(kind: str) -> nn.Module:
    if kind != "t5":
        return base(kind)
    net = T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2))
    weights = {name.removeprefix("t5/base/"): value for name, value in expected().items() if name.startswith("t5/base/")}
    net.load_state_dict(weights, strict=False)
    return net.eval()


def said(net: nn.Module, kind: str) -> Tensor:
    ids = expected()["ids"]
    ours = type(net).__module__.startswith("luthier")
    if ours:
        return net(ids, decoder_ids=ids) if kind == "t5" else net(ids)
    return net(input_ids=ids, **({"decoder_input_ids": ids} if kind == "t5" else {})).logits


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


REFUSED = {
    ("gpt2-invertible", False): "takes tokens and positions together",
    ("gpt2-parallel", False): "reads the residual stream before the norm",
    ("gpt2-parallel", True): "reads the residual stream before the norm",
    ("t5-prefix", False): "moves T5's relative positions",
    ("t5-prefix", True): "moves T5's relative positions",
}


@torch.no_grad()
@pytest.mark.parametrize("ours", [False, True], ids=["transformers", "ours"])
@pytest.mark.parametrize("case", CASES)
def test_a_folder_says_what_the_library_says(case: str, ours: bool, tmp_path: Path):
    kind, _, name = case.partition("-")
    convert_pickles(HERE / case, tmp_path / "adapter")
    net = net_of(kind)
    plain = said(net, kind)
    if ours:
        net.save_pretrained(tmp_path / "base")  # type: ignore[operator]
        net = load(tmp_path / "base").net
    if (case, ours) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[case, ours]):
            read(anatomy(net), tmp_path / "adapter")
        torch.testing.assert_close(said(net, kind), plain, rtol=0, atol=2e-5)
        return
    if ours:
        net = load(tmp_path / "base", adapter=tmp_path / "adapter").net
    else:
        read(anatomy(net), tmp_path / "adapter")
    close(said(net, kind), expected()[f"{kind}/{name}"])
    assert (plain - expected()[f"{kind}/{name}"]).abs().max() > 1e-2


@torch.no_grad()
def test_a_fusion_is_read_with_the_adapters_beside_it(tmp_path: Path):
    net = net_of("bert")
    for name in ("a", "b", "a,b"):
        convert_pickles(HERE / "bert-fusion" / name, tmp_path / name)
    read(anatomy(net), tmp_path / "a,b")
    close(said(net, "bert"), expected()["bert/fusion"])
    again = net_of("bert")
    (tmp_path / "b").rename(tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="it fuses 'b', whose folder lies neither in"):
        read(anatomy(again), tmp_path / "a,b")
    assert not anatomy(again).adapters


def test_training_goes_on_and_the_adapter_is_saved_as_ours(tmp_path: Path):
    convert_pickles(HERE / "bert-prefix", tmp_path / "theirs")
    net = net_of("bert")
    attached = read(anatomy(net), tmp_path / "theirs", trainable=True)
    assert "encoder.self.prefix.inner.weight" in attached.parameters  # its MLP too
    said(net, "bert").square().mean().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in attached.parameters.values() if p.grad is not None)
    attached.save(tmp_path / "ours")
    again = net_of("bert")
    read(anatomy(again), tmp_path / "ours")
    close(said(again, "bert"), expected()["bert/prefix"])


def test_the_command_converts_and_the_pickle_alone_is_refused_with_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="pytorch_adapter.bin is a pickle, which is never loaded; `luthier convert"):
        read(anatomy(net_of("bert")), HERE / "bert-pfeiffer")
    done = CliRunner().invoke(app, ["convert", str(HERE / "bert-pfeiffer"), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter.safetensors"}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"use_gating": True}, "not read here: use_gating=True"),
        ({"non_linearity": "leakyrelu"}, "non_linearity='leakyrelu'"),
        ({"reduction_factor": 8}, "of another shape: bert.encoder.layer.0.attention.output.adapters.one.adapter_down.0.bias"),
        ({"mh_adapter": False}, "unexpected: bert.encoder.layer.0.attention.output.adapters.one"),
        ({"architecture": "reft"}, "'reft' of the library adapters is not read here"),
    ],
)
def test_what_it_cannot_read_is_refused_and_the_model_stays(change: dict, words: str, tmp_path: Path):
    convert_pickles(HERE / "bert-houlsby", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["config"] |= change
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    net = net_of("bert")
    before = said(net, "bert")
    with pytest.raises(ValueError, match=words):
        read(anatomy(net), tmp_path / "adapter")
    torch.testing.assert_close(said(net, "bert"), before, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("case", HEADS)
def test_a_head_says_what_the_librarys_says(case: str, tmp_path: Path):
    convert_pickles(HERE / f"bert-head-{case}", tmp_path / "adapter")
    base("bert").save_pretrained(tmp_path / "base")
    model = load(tmp_path / "base", adapter=tmp_path / "adapter")
    states = model.net.hidden(expected()["ids"])
    head = model.net.heads[HEADS[case]]
    close(head(states[:, 0] if case == "classification" else states), expected()[f"bert/head-{case}"])
    with model.anatomy.using():  # it is the adapter's
        away = head(states[:, 0] if case == "classification" else states)
    assert not torch.allclose(away, expected()[f"bert/head-{case}"], atol=1e-3)


def test_a_head_that_is_not_read_is_refused_with_the_way_out(tmp_path: Path):
    convert_pickles(HERE / "bert-head-classification", tmp_path / "adapter")
    net = base("bert")
    with pytest.raises(
        ValueError, match=r"head_config.json: a head of the library adapters goes onto an encoder that is loaded from its folder"
    ):
        read(anatomy(net), tmp_path / "adapter")
    assert not anatomy(net).adapters
    file = tmp_path / "adapter" / "head_config.json"
    config = json.loads(file.read_text())
    net.save_pretrained(tmp_path / "base")
    for changes, told in (({"layers": 1}, "layers=1"), ({"head_type": "causal_lm"}, "head_type='causal_lm'")):
        file.write_text(json.dumps(config | {"config": config["config"] | changes}))
        with pytest.raises(ValueError, match=rf"not read here \({told}\); to load the adapter alone, take the head's two files out"):
            load(tmp_path / "base", adapter=tmp_path / "adapter")
    file.write_text(json.dumps(config))
    (tmp_path / "adapter" / "model_head.safetensors").rename(tmp_path / "adapter" / "gone")
    with pytest.raises(FileNotFoundError, match="no model_head.safetensors"):
        load(tmp_path / "base", adapter=tmp_path / "adapter")
    file.unlink()
    assert "classify" not in load(tmp_path / "base", adapter=tmp_path / "adapter").net.heads
