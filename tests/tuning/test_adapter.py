"""Bottleneck adapters: outputs of the library adapters, the papers' formulas by hand, published counts.

adapters_1.3.0.safetensors holds what adapters 1.3.0 on transformers 4.57.6 computed: a BERT and a GPT-2 of width 16 with random weights
(base), each composition's own weights as that library names them, and its logits for `ids`.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from kinds import build, logits, shake
from luthier.anatomy.anatomy import Anatomy, anatomy
from luthier.tuning._attached import Attached
from luthier.tuning._tune import attach, made

HOULSBY = {"kind": "adapter", "width": 4, "norms": False}
PFEIFFER = {"kind": "adapter", "after": ["ffn"], "reads": "sum", "reduction": 4, "act": "relu", "norms": False}
PARALLEL = {"kind": "adapter", "after": ["ffn"], "reads": "in", "reduction": 4, "act": "relu", "norms": False, "scale": 4.0}


@cache
def stored() -> dict[str, Tensor]:
    return load_file(Path(__file__).with_name("adapters_1.3.0.safetensors"))


def base(kind: str) -> nn.Module:
    if kind == "bert":
        config = BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=16
        )
        net: nn.Module = BertForMaskedLM(config)
    else:
        sizes = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 16}
        net = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
    weights = {name.removeprefix(f"{kind}/base/"): value for name, value in stored().items() if name.startswith(f"{kind}/base/")}
    net.load_state_dict(weights, strict=False)
    return net.eval()


def fill(attached: Attached, kind: str, case: str, theirs: str) -> None:
    """The values that the library has for its adapter `theirs`."""
    places = {
        "bert": {"self.o": "attention.output", "o": "attention.output", "down": "output"},
        "gpt2": {"o": "attention_adapters", "down": "output_adapters"},
    }[kind]
    stem = {"bert": "bert.encoder.layer", "gpt2": "transformer.h"}[kind]
    for name, parameter in attached.parameters.items():
        _, layer, role, end, kind_of = name.split(".")
        key = f"{kind}/{case}/{stem}.{layer}.{places[role]}.adapters.{theirs}."
        key += {"down": "adapter_down.0", "up": "adapter_up"}[end] + f".{kind_of}"
        parameter.data.copy_(stored()[key])


def close(net: nn.Module, kind: str, case: str) -> None:
    with torch.no_grad():
        out = net(input_ids=stored()["ids"]).logits
    torch.testing.assert_close(out, stored()[f"{kind}/{case}.out"], rtol=1e-4, atol=1e-5)
    assert (out - stored()[f"{kind}/base.out"]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "kind, case, method",
    [(kind, *case) for kind in ("bert", "gpt2") for case in (("houlsby", HOULSBY), ("pfeiffer", PFEIFFER))]
    + [("bert", "parallel", PARALLEL)],  # on GPT-2 that library reads what comes before the norm
)
def test_outputs_are_those_of_adapters(kind: str, case: str, method: dict):
    net = base(kind)
    fill(attach(anatomy(net), made(method, {})), kind, case, "one")
    close(net, kind, case)


COUNTS = [
    ("bert-large", {"width": 8}, 835_968 + 100_352),
    ("bert-large", {"width": 64}, 6_343_680 + 100_352),
    ("bert-large", {"width": 256, "norms": False}, 25_227_264),
    ("bert-base", PFEIFFER | {"reduction": 16}, 894_528),
    ("bert-large", PFEIFFER | {"width": 64, "reduction": 0}, 3_171_840),
    ("bart-large", PARALLEL | {"width": 512, "reduction": 0}, 25_202_688),
    ("t5-base", {"width": 24}, 1_855_104),  # 0.832 % of 222,903,552 (arXiv:2106.04647, table 1)
    ("t5-base", {"width": 24, "after": ["ffn"]}, 951_360),  # 0.427 %
]
SIZES = {
    "bert-base": ("bert", {}),
    "bert-large": ("bert", {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}),
    "bart-large": ("bart", {}),
    "t5-base": ("t5", {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}),
}


@cache
def meta(name: str) -> nn.Module:
    kind, fields = SIZES[name]
    with torch.device("meta"):
        return (AutoModelForSeq2SeqLM if kind == "t5" else AutoModel).from_config(AutoConfig.for_model(kind, **fields))


@pytest.mark.parametrize("name, method, count", COUNTS)
def test_parameter_counts_are_the_published_ones(name: str, method: dict, count: int):
    body = anatomy(meta(name))
    attached = attach(body, made({"kind": "adapter"} | method, {}))
    body.remove("default")
    assert sum(p.numel() for p in attached.parameters.values()) == count


@pytest.mark.parametrize("kind", ["our llama", "llama", "our bert", "bart", "phi3"])
def test_a_parallel_adapter_adds_what_it_makes_of_the_sublayers_input(kind: str):
    body = anatomy(build(kind))
    attached = attach(body, made(PARALLEL, {}))
    shake(attached.parameters)
    seen: dict[str, Tensor] = {}
    enters, leaves = body.find("up")[0], body.find("down")[0]
    assert leaves.around is not None
    for name, module in {"x": enters.module, "y": leaves.module, "out": leaves.around}.items():
        module.register_forward_hook(lambda _, args, out, name=name: seen.update({name: args[0] if name == "x" else out}))
    logits(body.net)
    w = {name.removeprefix(f"{leaves.address}."): p for name, p in attached.parameters.items() if name.startswith(leaves.address)}
    side = F.linear(F.relu(F.linear(seen["x"], w["down.weight"], w["down.bias"])), w["up.weight"], w["up.bias"])
    torch.testing.assert_close(seen["out"], seen["y"] + 4 * side)


def test_the_start_of_the_paper_is_near_the_base_and_of_its_deviation():
    net = build("our bert")
    attached = attach(anatomy(net), made("adapter", {"start": 0.01}))
    matrices = torch.cat([p.flatten() for name, p in attached.parameters.items() if name.endswith(("down.weight", "up.weight"))])
    assert matrices.abs().max() <= 0.02 and 0.008 < matrices.std() < 0.01
    assert all((p == 0).all() for name, p in attached.parameters.items() if name.endswith(("o.down.bias", "o.up.bias")))
    assert 0 < (logits(net) - logits(build("our bert"))).abs().max() < 0.05


def test_a_mixed_batch_gives_each_row_its_own_kind_of_adapter():
    net = build("our llama")
    body = anatomy(net)
    alone = []
    for name, method in [("a", HOULSBY), ("b", PFEIFFER), ("c", PARALLEL), ("d", {"kind": "lora"})]:
        shake(attach(body, made(method, {}), name).parameters)
        with body.using(name):
            alone.append(logits(net))
    for first, second in [(0, 1), (2, 0), (1, 2), (3, 2)]:
        with body.using("a", "b", "c", "d", rows=torch.tensor([[first], [second]])):
            mixed = logits(net)
        torch.testing.assert_close(mixed, torch.stack([alone[first][0], alone[second][1]]))


@pytest.mark.parametrize("kind", ["our llama", "bert", "our bert"])
@pytest.mark.parametrize("method", [HOULSBY, PFEIFFER, PARALLEL], ids=["houlsby", "pfeiffer", "parallel"])
def test_recomputation_gives_the_same_gradients(kind: str, method: dict):
    def gradients(recompute: bool) -> list[Tensor]:
        net = build(kind)
        torch.manual_seed(5)
        attached = attach(anatomy(net), made(method, {}))
        shake(attached.parameters)
        if recompute and kind == "bert":
            net.config.use_cache = False  # type: ignore[union-attr]
            net.activation_checkpointing_enable()  # type: ignore[operator]
            net.train()
            for module in net.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        elif recompute:
            net.recompute = True  # type: ignore[assignment]
        logits(net).square().mean().backward()
        return [p.grad for p in attached.parameters.values() if p.grad is not None]

    plain, again = gradients(False), gradients(True)
    assert plain and len(plain) == len(again)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)


def _refused(body: Anatomy, words: str, **fields) -> None:
    before = logits(body.net)
    with pytest.raises(ValueError, match=words):
        attach(body, made("adapter", fields))
    assert not body.adapters
    torch.testing.assert_close(logits(body.net), before, rtol=0, atol=0)


def test_what_cannot_be_is_refused_in_words():
    body = anatomy(build("our llama"))
    _refused(body, "cannot train beside it: norms: false", reads="sum")
    _refused(body, "has the role 'cross.o'.*leave cross out", after=["cross"])
    _refused(body, "width >= 1", width=0)
    _refused(anatomy(build("mixtral")), "has the role 'down'.*leave ffn out of `after`")
    _refused(anatomy(build("t5")), "leave cross out, or take reads: out", after=["cross"], reads="sum", norms=False)
