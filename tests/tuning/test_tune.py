"""tune: what a user may write, what is refused and in which words, published counts, formulas."""

import json
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertForSequenceClassification

from kinds import build, logits, shake
from luthier.anatomy.anatomy import anatomy
from luthier.models.bert import BERT
from luthier.sources.foreign import wrap
from luthier.sources.model import Model
from luthier.tuning._match import choose, patterns, targets
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made, tune
from luthier.tuning.bitfit import BitFit
from luthier.tuning.freeze import Freeze
from luthier.tuning.lora import LoRA

CONFIGS = {
    "roberta-base": ("roberta", {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "roberta-large": ("roberta", {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}),
    "gpt2-medium": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-large": ("gpt2", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "bert-base": ("bert", {}),
    "bert-large": ("bert", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}),
    "deberta-xxl": ("deberta-v2", {"hidden_size": 1536, "num_hidden_layers": 48, "num_attention_heads": 24, "intermediate_size": 6144}),
    "deberta-v3-base": ("deberta-v2", {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}),
}  # fmt: skip
ALL_SIX = ("q", "k", "v", "o", "up", "down")
COUNTS = [
    ("roberta-base", LoRA(), 294_912),
    ("roberta-large", LoRA(), 786_432),
    ("deberta-xxl", LoRA(rank=16), 4_718_592),
    ("gpt2-medium", LoRA(rank=4), 393_216),
    ("gpt2-large", LoRA(rank=4), 737_280),
    ("deberta-v3-base", LoRA(ALL_SIX, rank=8), 1_327_104),
    ("deberta-v3-base", LoRA(ALL_SIX, rank=2), 331_776),
    ("bert-base", BitFit(), 102_912),
    ("bert-large", BitFit(), 272_384),
    ("bert-base", BitFit(roles=("q", "up")), 46_080),
    ("bert-large", BitFit(roles=("q", "up")), 122_880),
]


@cache
def meta(name: str) -> nn.Module:
    kind, fields = CONFIGS[name]
    with torch.device("meta"):
        return AutoModel.from_config(AutoConfig.for_model(kind, **fields))


@pytest.mark.parametrize("name, method, count", COUNTS, ids=lambda value: value if isinstance(value, str) else "")
def test_parameter_counts_are_the_published_ones(name: str, method: LoRA | BitFit, count: int):
    body = anatomy(meta(name))
    attached = attach(body, method)
    body.remove("default")
    assert sum(p.numel() for p in attached.parameters.values()) == count


def test_our_presets_count_the_same():
    with torch.device("meta"):
        net = BERT(**BERT.presets["bert-base-uncased"] | {"lm": False}).build()
    assert sum(p.numel() for p in attach(anatomy(net), BitFit()).parameters.values()) == 102_912


def test_lora_is_its_formula():
    net = build("our gpt2")
    body = anatomy(net)
    attached = attach(body, LoRA(roles=("up",), rank=3, alpha=6.0))
    shake(attached.parameters)
    site = body.find("up", layers=0)[0]
    x = torch.randn(5, 32)
    a, b = attached.parameters["decoder.0.up.a"], attached.parameters["decoder.0.up.b"]
    torch.testing.assert_close(site.around(x), x @ (site.weight + 6.0 / 3 * b @ a).T + site.bias)  # type: ignore[misc]


def test_lora_starts_as_it_says():
    torch.manual_seed(0)
    body = anatomy(build("our gpt2"))
    kaiming = attach(body, LoRA(rank=16)).parameters
    a = torch.cat([p.flatten() for name, p in kaiming.items() if name.endswith(".a")])
    assert 0.9 / 32**0.5 < a.abs().max() <= 1 / 32**0.5  # uniform within 1/sqrt(d_in)
    body.remove("default")
    a = torch.cat([p.flatten() for name, p in attach(body, LoRA(rank=16, start="gaussian")).parameters.items() if name.endswith(".a")])
    assert abs(a.std() - 1 / 16) < 0.005
    assert all((p == 0).all() for name, p in kaiming.items() if name.endswith(".b"))


@pytest.mark.parametrize("rslora, scale", [(False, 16 / 4), (True, 16 / 2)])
def test_the_scale_of_lora_and_rslora(rslora: bool, scale: float):
    body = anatomy(build("our gpt2"))
    attach(body, LoRA(rank=4, rslora=rslora))
    assert body.find("q")[0].adapter("default").scale == scale  # type: ignore[union-attr]


def model(kind: str = "our gpt2") -> Model:
    return Model(build(kind)) if kind.startswith("our") else wrap(build(kind))  # type: ignore[arg-type]


def test_a_method_may_be_a_name_with_fields_a_section_or_an_object():
    wanted = LoRA(roles=("q",), rank=2)
    for method, fields in [("lora", {"roles": ["q"], "rank": 2}), ({"kind": "lora", "roles": ["q"], "rank": 2}, {}), (wanted, {})]:
        assert tune(model(), method, **fields).method == wanted


REFUSALS = [
    ("loar", {}, "did you mean 'lora'"),
    ("lora", {"rnak": 4}, "did you mean 'rank'"),
    ("lora", {"rank": 0}, "a rank is 1 at least"),
    ("lora", {"ranks": {"up": 4}}, "which roles"),
    ("lora", {"rank": 33}, "rank=33 is above what decoder.0.q, [0-9]+ x [0-9]+, can have; take [0-9]+ at most"),
    ("lora", {"roles": ["norm"]}, "go around projections and embeddings, and norm is a"),
    ("lora", {"roles": []}, "lora needs roles"),
    ("lora", {"alpha": float("nan")}, "alpha must be a finite number, not nan"),
    ("adalora", {"rank": 33}, "rank=33 is above"),
    ("unipelt", {"rank": 33}, "rank=33 is above"),
    ("lora", {"roles": ["q", "vv"]}, "no role called 'vv'; did you mean 'v'"),
    ("lora", {"roles": ["gate"]}, "has the role 'gate'"),
    ("lora", {"also_train": ["heat"]}, "no role called 'heat'; did you mean 'head'"),
    ("lora", {"also_train": ["q"]}, "trained in one way"),
    ("lora", {"blocks": "last 7"}, "there are 2"),
    ("freeze", {"roles": ["upp"]}, "did you mean 'up'"),
    ("lora", {"name": "keys"}, "cannot be called 'keys'"),
    ("lora", {"name": "a.b"}, "cannot be called"),
]


@pytest.mark.parametrize("method, fields, words", REFUSALS, ids=[f"{method} {fields}" for method, fields, _ in REFUSALS])
def test_what_does_not_fit_is_refused_and_the_model_stays_usable(method: str, fields: dict, words: str):
    fresh = model()
    before, trainable = logits(fresh.net), [p.requires_grad for p in fresh.net.parameters()]
    with pytest.raises(ValueError, match=words):
        tune(fresh, method, **fields)
    torch.testing.assert_close(logits(fresh.net), before, rtol=0, atol=0)
    assert [p.requires_grad for p in fresh.net.parameters()] == trainable
    assert not fresh.anatomy.adapters and fresh.attached is None
    tune(fresh, "lora")


def test_a_failing_second_adapter_leaves_the_first_at_work():
    fresh = model()
    shake(tune(fresh, "lora").parameters)
    want = logits(fresh.net)
    with pytest.raises(ValueError, match="no role called"):
        tune(fresh, "lora", name="second", roles=["q", "x"])
    with pytest.raises(ValueError, match="already"):
        tune(fresh, "lora")
    torch.testing.assert_close(logits(fresh.net), want, rtol=0, atol=0)
    assert {name for name, p in fresh.net.named_parameters() if p.requires_grad} == {
        name for name, _ in fresh.net.named_parameters() if "adapters" in name
    }


def test_a_model_without_biases_is_refused_by_bitfit():
    with pytest.raises(ValueError, match=r"has no bias: bitfit has nothing to train; take lora, or freeze with norms"):
        attach(anatomy(build("our llama")), BitFit())


@pytest.mark.parametrize("method", [None, 5, {}, {"rank": 4}, LoRA])
def test_what_is_no_method_is_refused(method: Any):
    with pytest.raises(ValueError, match="a tuning method is a name"):
        tune(model(), method)


def test_bitfit_may_be_of_some_blocks_alone():
    all_of_them, last = (attach(anatomy(build("our gpt2")), BitFit(blocks=blocks)).parameters for blocks in (None, "last 1"))
    assert last.keys() == {name for name in all_of_them if ".1." in name} and len(last) == 8


def test_bitfit_goes_by_the_type_of_module_not_by_name():
    """T5's relative_attention_bias is a table of an embedding; a bias of a Linear is one whatever it is called in."""
    with pytest.raises(ValueError, match="has no bias"):
        attach(anatomy(build("t5")), BitFit())
    names = attach(anatomy(build("bert")), BitFit()).parameters
    assert all(name.endswith("bias") for name in names) and len(names) == 2 * 8 + 4  # blocks, embedding's norm, head's dense, norm, bias


@pytest.mark.parametrize("method", [LoRA(), BitFit(), Freeze(blocks=(), norms=True)], ids=["lora", "bitfit", "freeze"])
@pytest.mark.parametrize("kind", ["our bert", "bert", "foreign"])
def test_a_task_head_trains_with_every_method_and_is_saved(kind: str, method, tmp_path):
    def fresh():
        torch.manual_seed(4)
        if kind == "bert":
            config = BertConfig(
                vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=3
            )
            net = BertForSequenceClassification(config).eval()
            return net, lambda ids: net(input_ids=ids).logits
        net = build("our bert") if kind == "our bert" else wrap(build("bert")).net
        net.add_head("classify", 3)  # type: ignore[operator]
        return net.eval(), lambda ids: net.heads["classify"](net.hidden(ids)[:, 0])  # type: ignore[index, operator]

    ids = torch.randint(3, 99, (2, 8), generator=torch.Generator().manual_seed(5))
    net, classify = fresh()
    attached = attach(anatomy(net), method)
    heads = [name for name in attached.parameters if "classif" in name or "pooler" in name]
    assert heads
    shake(attached.parameters)
    want = classify(ids)
    attached.save(tmp_path)
    again, classify = fresh()
    read(anatomy(again), tmp_path)
    torch.testing.assert_close(classify(ids), want, rtol=0, atol=1e-5)


def test_a_bitfit_folder_holds_the_biases_alone(tmp_path):
    from safetensors.torch import load_file

    attached = attach(anatomy(build("our gpt2")), BitFit())
    attached.save(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert stored and all(name.startswith("base_model.model.transformer.") and name.endswith(".bias") for name in stored)
    assert sum(value.numel() for value in stored.values()) == sum(p.numel() for p in attached.parameters.values())
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "BITFIT"


def test_values_of_one_architecture_go_from_our_model_to_transformers(tmp_path):
    """The file is by published names, so a bitfit of our GPT-2 is one of transformers' too."""
    attached = attach(anatomy(build("our gpt2")), BitFit())
    shake(attached.parameters)
    attached.save(tmp_path)
    theirs = anatomy(build("gpt2"))
    got = read(theirs, tmp_path)
    fused = theirs.at("transformer.h.1.attn.c_attn").around
    assert fused is not None
    ours = torch.cat([attached.parameters[f"blocks.1.attn.{role}.bias"] for role in "qkv"])
    torch.testing.assert_close(fused.merged(("default",))["bias"], ours)
    assert len(got.parameters) < len(attached.parameters)


def test_full_trains_everything_and_has_no_adapter_to_save(tmp_path):
    attached = attach(anatomy(build("our gpt2")), made("full", {}))
    assert attached.whole and all(p.requires_grad for p in attached.parameters.values())
    with pytest.raises(ValueError, match="save the model"):
        attached.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_state_of_another_method_is_refused_with_every_name():
    one, other = (attach(anatomy(build("our gpt2")), LoRA(roles=roles)) for roles in [("q",), ("v",)])
    with pytest.raises(ValueError, match=r"missing: decoder.0.q.a.*unexpected: decoder.0.v.a"):
        one.load_state(other.state())
    with pytest.raises(ValueError, match=r"of another shape: decoder.0.q.a"):
        one.load_state(attach(anatomy(build("our gpt2")), LoRA(roles=("q",), rank=2)).state())


def test_loading_over_an_adapter_replaces_it(tmp_path):
    net = build("our gpt2")
    attached = attach(anatomy(net), LoRA())
    shake(attached.parameters)
    want = logits(net)
    attached.save(tmp_path)
    shake(attached.parameters)
    attached.load(tmp_path)
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-6)
    assert all(p.requires_grad for p in attached.parameters.values())


def test_tied_weights_stay_one_parameter_when_they_train():
    for kind in ("our gpt2", "gpt2", "t5", "our bert"):
        body = anatomy(build(kind))
        attached = attach(body, LoRA(also_train=("embed", "head")))
        assert [name for name in attached.parameters if name.startswith(("embed", "head")) and name.endswith("weight")] == ["embed.weight"]
        assert body.embed.around.weight is body.head.around.weight  # type: ignore[union-attr]


def test_pefts_matching_rules():
    config = {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [1]}
    assert targets(config, "model.layers.1.self_attn.q_proj") and targets(config, "lm_head")
    assert not targets(config, "model.layers.0.self_attn.q_proj") and not targets(config, "model.layers.1.self_attn.xq_proj")
    assert targets({"target_modules": r".*\.(q|v)_proj"}, "a.q_proj") and not targets(
        {"target_modules": ["q"], "exclude_modules": ["q"]}, "a.q"
    )
    modules = ["a.0.x.dense", "a.1.x.dense", "a.0.dense", "a.1.dense", "pooler.dense"]
    assert choose({"a.0.x.dense", "a.1.x.dense"}, modules, {}, set()) == {"target_modules": ["x.dense"], "layers_to_transform": None}
    assert choose({"a.0.dense"}, modules, {}, set())["target_modules"] == ["0.dense"]
    assert patterns({"a.0.q": 2, "a.1.q": 2, "a.0.v": 8}, 8) == {"q": 2}
    assert patterns({"a.0.q": 2, "a.1.q": 8}, 8) == {"0.q": 2}
