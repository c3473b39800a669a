"""(IA)^3: the paper's places and counts, peft's files both ways."""

import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from kinds import LESS, THEIRS, build, logits, shake
from luthier.anatomy.anatomy import anatomy
from luthier.anatomy.merge import merge
from luthier.models.t5 import T5
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made
from luthier.tuning.ia3 import IA3
from pefts import ours_of, with_peft

DENSE = [kind for kind in THEIRS if kind != "mixtral"]  # its experts are one fused tensor
dense = pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow if kind in LESS else ()) for kind in DENSE])
MODULES = {  # (outputs, inputs); the defaults of peft scale other places than the paper's on half of the kinds
    "phi3": (["qkv_proj"], ["down_proj"]), "gpt2": (["attn.c_attn"], ["mlp.c_proj"]), "gpt_neox": (["query_key_value"], ["dense_4h_to_h"]),
    "bloom": (["query_key_value"], ["dense_4h_to_h"]), "bert": (["key", "value"], ["intermediate.dense"]),
    "roberta": (["key", "value"], ["intermediate.dense"]), "modernbert": (["Wqkv"], ["mlp.Wo"]), "t5": (["k", "v"], ["wo"]),
    "opt": (["k_proj", "v_proj"], ["fc2"]), "bart": (["k_proj", "v_proj"], ["fc2"]),
}  # fmt: skip


def saved_by_peft(kind: str, folder: Path) -> Tensor:
    outputs, inputs = MODULES.get(kind, (["k_proj", "v_proj"], ["down_proj"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(build(kind), peft.IA3Config(target_modules=outputs + inputs, feedforward_modules=inputs)).eval()
        shake({name: p for name, p in model.named_parameters() if p.requires_grad}, 0.3)
        model.save_pretrained(str(folder))
        return logits(model)


@dense
@pytest.mark.parametrize("fields", [{}, {"blocks": "last 1"}, {"roles": ("v",), "also_train": ("embed",)}], ids=["plain", "last", "embed"])
def test_peft_loads_what_we_save(kind: str, fields: dict, tmp_path):
    net = build(kind)
    attached = attach(anatomy(net), made("ia3", fields))
    shake(attached.parameters, 0.3)
    attached.save(tmp_path)
    torch.testing.assert_close(logits(with_peft(kind, tmp_path)), logits(net), rtol=0, atol=1e-4)
    again = build(kind)
    back = read(anatomy(again), tmp_path)
    torch.testing.assert_close(logits(again), logits(net), rtol=0, atol=1e-4)
    if "also_train" in fields:  # modules saved whole come back whole
        return
    assert {name: p.shape for name, p in back.parameters.items()} == {name: p.shape for name, p in attached.parameters.items()}


@dense
def test_we_load_what_peft_saves_and_merge_it(kind: str, tmp_path):
    want = saved_by_peft(kind, tmp_path)
    net = build(kind)
    attached = read(anatomy(net), tmp_path)
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-4)
    assert not torch.allclose(want, logits(build(kind)), atol=1e-2)
    assert merge(attached.anatomy) < 1e-4
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_our_own_models_cross_both_ways(kind: str, tmp_path):
    net = ours_of(kind)
    attached = attach(anatomy(net), IA3())
    shake(attached.parameters, 0.3)
    attached.save(tmp_path / "ours")
    wrapped = with_peft(kind, tmp_path / "ours")
    torch.testing.assert_close(logits(wrapped), logits(net), rtol=0, atol=1e-4)
    wrapped.save_pretrained(str(tmp_path / "theirs"))  # type: ignore[operator]
    for folder in ("ours", "theirs"):
        again = ours_of(kind)
        read(anatomy(again), tmp_path / folder)
        torch.testing.assert_close(logits(again), logits(net), rtol=0, atol=1e-4)


def test_the_factors_of_one_role_on_a_fused_projection_leave_the_others_at_one(tmp_path):
    attached = attach(anatomy(build("gpt2")), IA3(roles=("k",), inner=()))
    shake(attached.parameters, 0.3)
    attached.save(tmp_path)
    (vector,) = [value for name, value in load_file(tmp_path / "adapter_model.safetensors").items() if ".0." in name]
    assert vector.shape == (96, 1)
    assert (vector[:32] == 1).all() and (vector[64:] == 1).all() and (vector[32:64] != 1).all()


def meta(kind: str, **fields) -> nn.Module:
    with torch.device("meta"):
        return AutoModel.from_config(AutoConfig.for_model(kind, **fields))


def test_counts_are_the_published_ones():
    xl = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "feed_forward_proj": "gated-gelu"}
    qwen = {"hidden_size": 1024, "head_dim": 128, "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 3072}
    nets = [
        (meta("t5", **xl), 540_672),
        (meta("t5", **xl | {"d_model": 4096, "num_heads": 64, "d_ff": 10_240}), 1_081_344),
        (meta("bert"), 55_296),
        (meta("qwen3", **qwen | {"num_hidden_layers": 28}), 143_360),
    ]
    with torch.device("meta"):
        nets.append((T5(**T5.presets["t5-v1.1-xl"]).build(), 540_672))
    for net, count in nets:
        assert sum(p.numel() for p in attach(anatomy(net), IA3()).parameters.values()) == count


def test_a_factor_on_keys_is_the_papers_formula():
    net = build("llama")
    body = anatomy(net)
    attached = attach(body, IA3())
    shake(attached.parameters, 0.5)
    x_BTD, x_BTF = torch.randn(1, 3, 32), torch.randn(1, 3, 48)
    k, down = body.find("k", layers=0)[0], body.find("down", layers=0)[0]
    torch.testing.assert_close(k.around(x_BTD), attached.parameters["decoder.0.k.scale"] * (x_BTD @ k.weight.T))  # type: ignore[misc]
    torch.testing.assert_close(down.around(x_BTF), (attached.parameters["decoder.0.down.scale"] * x_BTF) @ down.weight.T)  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields, words",
    [({"roles": (), "inner": ()}, "roles or inner"), ({"roles": ("attn_norm",)}, "decoder.0.attn_norm"), ({"inner": ("dwon",)}, "down")],
)
def test_what_cannot_be_is_refused_in_a_sentence(fields: dict, words: str):
    net = build("llama")
    with pytest.raises(ValueError, match=words):
        attach(anatomy(net), made("ia3", fields))
    assert not anatomy(net).adapters


def test_tokens_of_ones_own_are_saved_too(tmp_path):
    """peft's IA3 has no added tokens: such a folder is ours alone."""
    net = build("llama")
    body = anatomy(net)
    body.grown = {98: "new"}
    attached = attach(body, IA3())
    shake(attached.parameters, 0.3)
    attached.save(tmp_path)
    again = anatomy(build("llama"))
    again.grown = {98: "new"}
    read(again, tmp_path)
    torch.testing.assert_close(logits(again.net), logits(net), rtol=0, atol=1e-4)
