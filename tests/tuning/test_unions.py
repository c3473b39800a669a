"""MAM and UniPELT: outputs of the library adapters, published counts, and the unified view of He et al. in closed form.

adapters_unions.safetensors is made by adapters_unions.py.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, BartConfig, BertConfig, BertForMaskedLM, PretrainedConfig

from kinds import build, check_padding_and_packing, greedy, logits, shake, tokens
from luthier.anatomy.anatomy import anatomy
from luthier.anatomy.call import CallAround, Widened
from luthier.core.attention import Mask, attend
from luthier.core.generate import generate_ids
from luthier.core.reader import Sampling
from luthier.sources.foreign import wrap
from luthier.tuning._attached import Attached
from luthier.tuning._prefix import LayerPrefix
from luthier.tuning._tune import attach as put
from luthier.tuning._tune import made
from luthier.tuning.mam import MAM
from luthier.tuning.unipelt import UniPELT

SMALL_MAM = {"kind": "mam", "length": 3, "hidden": 8, "width": 4}
SMALL_UNIPELT = {"kind": "unipelt", "length": 3, "hidden": 8, "rank": 2, "reduction": 8}
both = pytest.mark.parametrize("method", [SMALL_MAM, SMALL_UNIPELT], ids=["mam", "unipelt"])


@cache
def stored() -> dict[str, Tensor]:
    return load_file(Path(__file__).with_name("adapters_unions.safetensors"))


def base(case: str) -> nn.Module:
    """The library's BERT. It counts positions without the prefix, ours behind it: so ours finds its first position in row 3."""
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    net = BertForMaskedLM(BertConfig(**sizes, max_position_embeddings=16)).eval()
    weights = {name.removeprefix(f"{case}/base/"): value for name, value in stored().items() if name.startswith(f"{case}/base/")}
    table = "bert.embeddings.position_embeddings.weight"
    net.load_state_dict(weights | {table: weights[table].roll(3, 0)}, strict=False)
    net.tie_weights()
    return net


PARTS = {
    "encoder.self.prefix.words": "attention.self.prefix_tuning.pool.prefix_tunings.one.self_prefix.wte.weight",
    "encoder.self.prefix.inner": "attention.self.prefix_tuning.pool.prefix_tunings.one.self_prefix.control_trans.0",
    "encoder.self.prefix.outer": "attention.self.prefix_tuning.pool.prefix_tunings.one.self_prefix.control_trans.2",
    "gate": "attention.self.prefix_tuning.prefix_gates.one",
    "down.down": "output.adapters.one.adapter_down.0", "down.up": "output.adapters.one.adapter_up", "down.gate": "output.adapters.one.gate",
    "q.a": "attention.self.query.loras.one.lora_A", "q.b": "attention.self.query.loras.one.lora_B", "q.gate": "attention.self.query.loras.one.gate",
    "v.a": "attention.self.value.loras.one.lora_A", "v.b": "attention.self.value.loras.one.lora_B", "v.gate": "attention.self.value.loras.one.gate",
}  # fmt: skip


def theirs(case: str, name: str) -> Tensor:
    """The library's value of one of our parameters."""
    name = name.removeprefix("prefix.").removeprefix("adapter.")
    layer = next((part for part in name.split(".") if part.isdigit()), "0")
    plain = name.replace(f"encoder.self.{layer}.gate", "gate").replace(f"encoder.{layer}.", "")
    part = next(part for part in sorted(PARTS, key=len, reverse=True) if plain == part or plain.startswith(f"{part}."))
    return stored()[f"{case}/bert.encoder.layer.{layer}.{PARTS[part]}{plain.removeprefix(part)}"]


@pytest.mark.parametrize(
    "case, method",
    [
        ("mam", {"kind": "mam", "length": 3, "hidden": 5, "width": 4}),
        ("unipelt", {"kind": "unipelt", "length": 3, "hidden": 5, "rank": 8, "reduction": 4, "gates": "text"}),
    ],
)
def test_outputs_are_those_of_adapters(case: str, method: dict):
    net = base(case)
    attached = put(anatomy(net), made(method, {}))
    for name, parameter in attached.parameters.items():
        parameter.data.copy_(theirs(case, name))
    own = [name for name in stored() if name.startswith(f"{case}/") and ".one." in name]
    assert len(attached.parameters) == len(own)
    with torch.no_grad():
        out = net(input_ids=stored()["ids"]).logits
    torch.testing.assert_close(out, stored()[f"{case}/out"], rtol=1e-4, atol=1e-5)
    assert (out - stored()[f"{case}/base.out"]).abs().max() > 0.1


def on_meta(config: PretrainedConfig) -> nn.Module:
    with torch.device("meta"):
        return AutoModel.from_config(config)


def kept(attached: Attached) -> int:
    """What is kept of prefixes: their numbers, not the MLP that makes them."""
    calls = [
        around.adapters[name] for _, around in attached.anatomy.arounds() if isinstance(around, CallAround) for name in around.adapters
    ]
    return sum(call.numbers * call.shapes[0][1] for call in calls if isinstance(call, LayerPrefix))


def test_mam_on_bart_large_has_the_published_count():
    full = sum(p.numel() for p in on_meta(BartConfig()).parameters())
    small = BartConfig(vocab_size=8, encoder_ffn_dim=8, decoder_ffn_dim=8)  # all attention; the rest does not count
    attached = put(anatomy(AutoModel.from_config(small, dtype=torch.bfloat16)), MAM(hidden=1))
    adapters = sum(p.numel() for p in attached.members["adapter"].parameters.values())
    assert (kept(attached), adapters, full) == (2_211_840, 25_202_688, 406_291_456)
    assert round(100 * (kept(attached) + adapters) / full, 2) == 6.75  # 6.7 % in the paper's table 6


def test_unipelt_on_bert_base_has_the_count_of_adapters():
    attached = put(anatomy(on_meta(BertConfig())), UniPELT())
    assert sum(p.numel() for p in attached.parameters.values()) == int(stored()["unipelt/count of BERT-base"])


def test_mam_starts_as_its_paper_does():
    attached = put(anatomy(build("our bert")), made({"kind": "mam"}, {}))
    down = {name: p for name, p in attached.parameters.items() if name.endswith("down.down.weight")}
    assert down and all(
        p.shape == (512, 32) and 0.9 / 32**0.5 < p.abs().max() <= 1 / 32**0.5 for p in down.values()
    )  # Kaiming, a = sqrt(5)
    assert all((p == 0).all() for name, p in attached.parameters.items() if ".up." in name or name.endswith("down.bias"))


# The unified view: He et al. section 3.1, eq. 7 to 9


@pytest.mark.parametrize("kind", ["our bert", "our gpt2", "our llama"])
def test_a_prefix_is_a_gated_adapter(kind: str):
    """head(x) with a prefix = (1 - g) head(x) + g f(x W_q P_k^T) P_v, f the softmax and g the prefix's share of all exponentials."""
    net = build(kind).double()
    body = anatomy(net)
    put(body, made({"kind": "p_tuning_v2", "length": 3}, {}))
    seen: dict[str, tuple] = {}
    around = next(around for _, around in body.arounds() if isinstance(around, CallAround))
    around.base.register_forward_hook(
        lambda _, args, kwargs, out: seen.update({"call": args, "prefix": kwargs["prefix"], "out": out}), with_kwargs=True
    )
    logits(net)
    q, k, v, mask, bias, scale, _ = seen["call"]
    keys, values = (x.repeat_interleave(q.shape[1] // x.shape[0], 0) for x in seen["prefix"])  # query heads of one group share them
    k_all = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scale = scale or q.shape[-1] ** -0.5
    own = q @ k_all.mT * scale
    if net.causal:
        own = own.masked_fill(~torch.ones(8, 8).tril().bool(), float("-inf"))
    to_prefix = torch.einsum("bhtk,hpk->bhtp", q, keys) * scale
    gate = torch.sigmoid(to_prefix.logsumexp(-1) - own.logsumexp(-1))[..., None]
    adapter = torch.einsum("bhtp,hpk->bhtk", to_prefix.softmax(-1), values)
    plain = attend(q, k, v, mask, bias, scale)
    torch.testing.assert_close(seen["out"], (1 - gate) * plain + gate * adapter, rtol=0, atol=1e-10)
    assert 0.01 < gate.mean() < 0.99 and (seen["out"] - plain).abs().max() > 0.1


def test_a_gated_prefix_is_its_formula():
    """Of each query the keys g P_k and the values g P_v, beside a prefix without a gate."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 4, dtype=torch.float64) for heads in (4, 2, 2))
    first, second = ((torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()) for _ in range(2))
    gate = torch.rand(2, 5, 1).double()
    wide = Widened([first, second], [gate, None], q, k, v)
    out = attend(wide.q, wide.k, wide.v, Mask(causal=True), None, 0.5, prefix=wide.prefix)
    got = wide.closed(out.transpose(1, 2)).transpose(1, 2)
    for row in range(2):
        for head in range(4):
            group = head // 2
            for t in range(5):
                g = gate[row, t]
                keys = torch.cat([g * first[0][group], second[0][group], k[row, group, : t + 1]])
                values = torch.cat([g * first[1][group], second[1][group], v[row, group, : t + 1]])
                want = (0.5 * keys @ q[row, head, t]).softmax(0) @ values
                torch.testing.assert_close(got[row, head, t], want, rtol=0, atol=1e-12)


def test_an_open_gate_is_the_method_without_one_and_a_closed_one_is_the_base():
    net = build("our llama")
    attached = put(anatomy(net), made(SMALL_UNIPELT, {}))
    shake({name: p for name, p in attached.parameters.items() if ".gate." not in name})
    gates = {name: p for name, p in attached.parameters.items() if ".gate." in name}
    with torch.no_grad():
        for name, parameter in gates.items():
            parameter.copy_(torch.full_like(parameter, 40.0 if name.endswith("bias") else 0.0))
    opened = logits(net)
    plain = build("our llama")
    parts = [{"kind": "lora", "rank": 2, "alpha": 2.0}, {"kind": "prefix", "length": 3, "hidden": 8}]
    parts.append({"kind": "adapter", "after": ["ffn"], "reads": "sum", "reduction": 8, "act": "relu", "norms": False})
    stack = put(anatomy(plain), made(parts, {}))
    with torch.no_grad():
        for name, parameter in stack.parameters.items():
            parameter.copy_(attached.parameters[name.partition(".")[2]])
    torch.testing.assert_close(opened, logits(plain), rtol=0, atol=1e-5)
    with torch.no_grad():
        for name, parameter in gates.items():
            if ".self." not in name and name.endswith(
                "bias"
            ):  # a prefix behind a closed gate still takes its share, with keys and values of 0
                parameter.copy_(torch.full_like(parameter, -40.0))
    closed = logits(net)
    with anatomy(plain).using("default_prefix"):
        torch.testing.assert_close(closed, logits(plain), rtol=0, atol=1e-5)


# What holds for both


@both
@pytest.mark.parametrize("kind", ["llama", "our llama", "our gpt2", "our bert", "bert"])
def test_padding_on_either_side_and_packing_change_nothing(kind: str, method: dict):
    net = build(kind) if kind.startswith("our") else wrap(build(kind)).net
    shake(put(anatomy(net), made(method, {})).parameters)
    check_padding_and_packing(net)


@pytest.mark.parametrize("kind", ["our bert", "bert"])
def test_gates_that_are_means_over_a_text_do_not_see_padding(kind: str):
    net = build(kind) if kind.startswith("our") else wrap(build(kind)).net
    shake(put(anatomy(net), made(SMALL_UNIPELT | {"gates": "text"}, {})).parameters)
    check_padding_and_packing(net)


@both
@pytest.mark.parametrize("kind", ["our llama", "our gpt2", "our t5"])
def test_a_cache_changes_nothing(kind: str, method: dict):
    net = build(kind)
    shake(put(anatomy(net), made(method, {})).parameters)
    prompts = [tokens()[0].tolist(), tokens()[1, :4].tolist()]
    ids = [greedy(net, prompt, 5) for prompt in prompts]
    assert [list(row)[-5:] for row in generate_ids(net, prompts, Sampling(temperature=0.0, max_tokens=5))] == ids


@both
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_sdpa_is_eager(kind: str, method: dict):
    net = build(kind)
    attached = put(anatomy(net), made(method, {}))
    shake(attached.parameters)
    want = logits(net)
    net.set_attn_implementation("eager")
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("kind", ["our llama", "our t5", "our bert"])
def test_recomputation_gives_equal_gradients(kind: str, method: dict):
    grads = []
    for recompute in (False, True):
        net = build(kind)
        torch.manual_seed(5)
        attached = put(anatomy(net), made(method, {}))
        shake(attached.parameters)
        net.recompute = recompute  # type: ignore[assignment]
        logits(net).square().mean().backward()
        grads.append({name: p.grad for name, p in attached.parameters.items()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_is_refused_in_words():
    body = anatomy(build("our llama"))
    before = logits(body.net)
    for method, words in [
        (SMALL_UNIPELT | {"gates": "text"}, "a model that writes has not read yet; take gates: token"),
        (SMALL_UNIPELT | {"roles": ["q", "cross.q"]}, "has the role 'cross.q'"),
        ({"kind": "unipelt", "rank": 0}, "rank, length, hidden and reduction of 1 at least"),
        ({"kind": "mam", "width": 0}, "length, hidden and width of 1 at least"),
    ]:
        with pytest.raises(ValueError, match=words):
            put(body, made(method, {}))
        assert not body.adapters
        torch.testing.assert_close(logits(body.net), before, rtol=0, atol=0)
