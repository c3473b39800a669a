"""Every tuning method on every kind of model: the same contract."""

import copy

import pytest
import torch
from torch import nn

from kinds import NO_BIAS, build, kinds, logits, shake
from luthier import lookup
from luthier.anatomy.anatomy import anatomy
from luthier.anatomy.merge import merge
from luthier.tuning._attached import Attached
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made

VARIANTS = {
    "lora": [{}, {"roles": ("q", "k", "v", "o"), "rank": 2, "ranks": {"k": 3}, "also_train": ("embed",)}, {"dora": True, "start": "pissa"}],
    "qlora": [{"rank": 4, "alpha": 4.0}, {"base": "int8", "roles": ("q", "v"), "rank": 2, "also_train": ("embed",)}],
    "adalora": [{"rank": 3, "target": 2}],
    "freeze": [{}, {"roles": ("q", "o")}],
    "adapter": [
        {"width": 4},
        {"after": ("ffn",), "reads": "sum", "reduction": 8, "norms": False},
        {"after": ("attn", "ffn"), "reads": "in", "width": 4, "scale": 4.0, "norms": False},
    ],
    "prefix": [{"length": 3, "hidden": 8}],
    "p_tuning_v2": [{"length": 3}],
    "prompt": [{"length": 3}],
    "p_tuning": [{"length": 3}, {"length": 3, "encoder": "mlp"}],
    "compacter": [{"reduction": 8, "summands": 2}],
    "mad_x": [{"reduction": 4, "act": "gelu"}],
    "adapter_fusion": [{"adapters": {key: {"kind": "adapter", "width": 4, "start": 0.3, "norms": False} for key in ("a", "b")}}],
    "mam": [{"length": 3, "hidden": 8, "width": 4, "act": "gelu"}],
    "unipelt": [{"length": 3, "hidden": 8, "rank": 2, "reduction": 8, "act": "gelu"}],
    "ia3": [{}, {"roles": ("q", "o", "up"), "inner": (), "also_train": ("embed",)}],
}
ANEW = ("prefix", "p_tuning_v2", "prompt", "p_tuning", "adapter_fusion", "mam", "unipelt")  # what they add is seen from the first step, as in their papers
ALONE = {"bloom"}  # transformers models that compute their attention by themselves: no prefix stands before their keys
SHELF = [name for name in lookup.names("tuning") if name != "features"]  # features reads frozen states and trains no part of the model
CASES = [(name, fields) for name in SHELF for fields in VARIANTS.get(name, [{}])]


def spell(value: str | dict) -> str:
    return value if isinstance(value, str) else "-".join(value) or "default"


methods = pytest.mark.parametrize(
    "method, fields", CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default"
)
adapters = pytest.mark.parametrize(
    "method, fields", [case for case in CASES if case[0] != "full"], ids=lambda v: v if isinstance(v, str) else "-".join(v) or "default"
)


def start(kind: str, method: str, fields: dict) -> tuple[nn.Module, Attached]:
    if method == "bitfit" and kind in NO_BIAS:
        pytest.skip("this model has no biases")
    if method == "adapter" and kind == "mixtral":
        fields = fields | {"after": ("attn",)}
    if method == "compacter" and kind == "mixtral":
        fields = fields | {"after": ("attn",)}
    if method == "adapter_fusion":
        torch.manual_seed(0)  # two copies of a model fuse the same adapters
        only = {"after": ["attn"]} if kind == "mixtral" else {}
        fields = {"adapters": {name: section | only for name, section in fields["adapters"].items()}}
    if method in ("mad_x", "mam", "unipelt") and kind == "mixtral":
        with pytest.raises(ValueError, match="leave ffn out"):
            attach(anatomy(build(kind)), made(method, fields))
        pytest.skip("refused in words")
    if method == "ia3" and kind == "mixtral":  # its experts are one fused tensor
        fields = {"inner": ()}
    net = build(kind)
    if method in ("prefix", "p_tuning_v2", "mam", "unipelt") and kind in ALONE:
        with pytest.raises(ValueError, match="not through transformers' attention registry"):
            attach(anatomy(net), made(method, fields))
        pytest.skip("refused in words")
    return net, attach(anatomy(net), made(method, fields))


def base(kind: str, method: str, fields: dict) -> nn.Module:
    """What the adapter stands on: the model, for qlora with its projections quantised."""
    net = build(kind)
    if method == "qlora":
        attach(anatomy(net), made(method, fields)).anatomy.remove("default")
    return net


@kinds
@methods
def test_starts_at_the_base_model(kind: str, method: str, fields: dict):
    net, attached = start(kind, method, fields)
    assert attached.parameters
    if method in ANEW:
        assert not torch.allclose(logits(net), logits(build(kind)))
        return
    torch.testing.assert_close(logits(net), logits(base(kind, method, fields)))


@kinds
@methods
def test_trains_only_what_it_added(kind: str, method: str, fields: dict):
    net, attached = start(kind, method, fields)
    before = {name: value.clone() for name, value in anatomy(net).state().items()}
    trainable = {id(p) for p in net.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in attached.parameters.values()}
    logits(net).square().mean().backward()
    torch.optim.SGD(attached.parameters.values(), 0.1).step()
    assert not torch.allclose(logits(net), logits(base(kind, method, fields)))
    if not attached.whole:
        after = anatomy(net).state()
        assert all(torch.equal(after[name], value) for name, value in before.items())


def never_used(kind: str, name: str) -> bool:
    """Elements whose gradient is zero by algebra, or that this input does not reach."""
    seen_in_part = (
        "embed.",
        "embed_in",
        "embed_tokens",
        "word_embeddings",
        "wte",
        "wpe",
        "position",
        "types",
        "token_type",
        "relative",
    )
    key_bias = name.endswith(
        ("k.bias", "key.bias", "k_proj.bias", "c_attn.bias", "Wqkv.bias", "query_key_value.bias")
    )  # softmax is blind to it
    experts = "experts" in name or name.endswith("mlp.gate.weight")  # not every expert is asked
    relu = kind in ("opt", "t5", "our t5", "our transformer") and any(
        part in name for part in ("fc1", "fc2", "wi", "wo", "ffn.", ".up.", ".down.")
    )  # a unit may be off for all 16 tokens
    relu = relu or (".prompt." in name and not name.endswith("outer.bias"))  # units of p_tuning's MLP too
    pooler = "pooler" in name  # BERT's is for sentence heads
    return any(part in name for part in seen_in_part) or key_bias or experts or relu or pooler


@kinds
@methods
def test_every_element_gets_a_gradient_after_noise(kind: str, method: str, fields: dict):
    net, attached = start(kind, method, fields)
    shake(attached.parameters, 0.3)
    out = logits(net)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    dead = {
        name: int((p.grad == 0).sum()) if p.grad is not None else p.numel()
        for name, p in attached.parameters.items()
        if not never_used(kind, name)
    }
    pooler = {name for name in dead if "pooler" in name}  # BERT's pooler is for sentence heads
    assert {name: count for name, count in dead.items() if count and name not in pooler} == {}


@kinds
@adapters
def test_disabling_it_is_the_base_model(kind: str, method: str, fields: dict):
    net, attached = start(kind, method, fields)
    with attached.anatomy.using():
        plain = logits(net)
    torch.testing.assert_close(plain, logits(base(kind, method, fields)))
    shake(attached.parameters)
    changed = logits(net)
    with attached.anatomy.using():
        torch.testing.assert_close(logits(net), plain, rtol=0, atol=0)
    torch.testing.assert_close(logits(net), changed, rtol=0, atol=0)


@kinds
@adapters
def test_survives_a_round_trip_through_its_folder(kind: str, method: str, fields: dict, tmp_path):
    net, attached = start(kind, method, fields)
    shake(attached.parameters)
    attached.save(tmp_path / "adapter")
    again = base(kind, method, fields)
    read(anatomy(again), tmp_path / "adapter")
    torch.testing.assert_close(logits(again), logits(net), rtol=0, atol=1e-5)
    assert not torch.allclose(logits(again), logits(base(kind, method, fields)))
    assert not any(p.requires_grad for p in anatomy(again).arounds()[0][1].adapters.parameters())


@kinds
@methods
def test_its_state_goes_on_another_copy(kind: str, method: str, fields: dict):
    net, attached = start(kind, method, fields)
    shake(attached.parameters)
    again, fresh = start(kind, method, fields)
    fresh.load_state(attached.state())
    torch.testing.assert_close(logits(again), logits(net), rtol=0, atol=0)


@kinds
@methods
def test_a_deep_copy_is_the_same_model_apart(kind: str, method: str, fields: dict):
    net, attached = start(kind, method, fields)
    shake(attached.parameters)
    want = logits(net)
    twin = copy.deepcopy(net)
    torch.testing.assert_close(logits(twin), want, rtol=0, atol=0)
    shake(attached.parameters)
    torch.testing.assert_close(logits(twin), want, rtol=0, atol=0)
    if not attached.whole:
        anatomy(twin).activate()
        assert attached.anatomy.active == ("default",)


@kinds
@adapters
def test_merged_is_unmerged(kind: str, method: str, fields: dict):
    net, attached = start(kind, method, fields)
    shake(attached.parameters)
    want = logits(net)
    if not all(adapter.mergeable for _, around in attached.anatomy.arounds() for adapter in around.adapters.values()):
        with pytest.raises(ValueError, match="cannot be merged"):
            merge(attached.anatomy)
        torch.testing.assert_close(logits(net), want, rtol=0, atol=0)
        return
    assert merge(attached.anatomy) < 1e-4
    assert (logits(net) - want).abs().max() < 1e-4
    assert not attached.anatomy.adapters
    assert {name for name, _ in net.named_parameters()} == {name for name, _ in build(kind).named_parameters()}


@kinds
def test_a_second_adapter_stands_beside_the_first(kind: str):
    net = build(kind)
    body = anatomy(net)
    first = attach(body, made("lora", {"also_train": ("embed",)}), "first")
    shake(first.parameters)
    one = logits(net)
    second = attach(body, made("lora", {"roles": ("q",), "rank": 2}), "second")
    torch.testing.assert_close(logits(net), logits(build(kind)))  # the second is at work, and it is new
    assert {id(p) for p in net.parameters() if p.requires_grad} == {id(p) for p in second.parameters.values()}
    shake(second.parameters)
    two = logits(net)
    body.activate("first")
    torch.testing.assert_close(logits(net), one, rtol=0, atol=0)
    with body.using("second"):
        torch.testing.assert_close(logits(net), two, rtol=0, atol=0)
    with body.using("first", "second"):
        both = logits(net)
    assert not torch.allclose(both, one) and not torch.allclose(both, two)
    body.remove("first")
    body.activate("second")
    torch.testing.assert_close(logits(net), two, rtol=0, atol=0)
