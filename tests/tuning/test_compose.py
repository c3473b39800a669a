"""Compositions of adapters: outputs of the library adapters, mixed rows, artefacts; Compacter, MAD-X and AdapterFusion by their formulas."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from kinds import build, logits, shake, tokens
from luthier.anatomy.anatomy import anatomy
from luthier.anatomy.compose import average, parallel, split
from luthier.anatomy.merge import merge
from luthier.core.generate import generate_ids
from luthier.core.reader import Sampling
from luthier.tuning._attached import Attached
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made
from luthier.tuning.compacter import PHM
from luthier.tuning.mad_x import NICE
from tuning.test_adapter import PFEIFFER, base, close, fill, meta, stored

MADX = {"kind": "mad_x", "reduction": 4}
FUSION = {"kind": "adapter_fusion", "adapters": {"a": "", "b": ""}}


def fill_invertible(attached: Attached, kind: str, case: str, theirs: str) -> None:
    ends = {"f_in": "F.0", "f_out": "F.2", "g_in": "G.0", "g_out": "G.2"}
    stem = {"bert": "bert", "gpt2": "transformer"}[kind]
    for name in [name for name in attached.parameters if name.startswith("embed.")]:
        _, end, parameter = name.split(".")
        value = stored()[f"{kind}/{case}/{stem}.invertible_adapters.{theirs}.{ends[end]}.{parameter}"]
        attached.parameters[name].data.copy_(value)
    rest = {name: p for name, p in attached.parameters.items() if not name.startswith("embed.")}
    fill(Attached(attached.anatomy, attached.name, None, rest), kind, case, theirs)


def pair(kind: str) -> nn.Module:
    """The two adapters that the library fuses, averages and splits."""
    net = base(kind)
    for name in ("a", "b"):
        fill(attach(anatomy(net), made(PFEIFFER, {}), name), kind, "fusion", name)
    return net


def test_an_invertible_adapter_is_that_of_adapters_on_bert():
    net = base("bert")
    fill_invertible(attach(anatomy(net), made(MADX, {})), "bert", "madx", "one")
    close(net, "bert", "madx")


def test_a_task_on_a_language_is_that_of_adapters_on_bert():
    net = base("bert")
    body = anatomy(net)
    fill_invertible(attach(body, made(MADX, {}), "en"), "bert", "stack", "en")
    fill(attach(body, made(PFEIFFER, {}), "task"), "bert", "stack", "task")
    body.activate("en", "task")
    close(net, "bert", "stack")


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_an_average_is_that_of_adapters(kind: str):
    net = pair(kind)
    average(anatomy(net), {"a": 0.3, "b": 0.7}, "both")
    anatomy(net).activate("both")
    close(net, kind, "average")


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_split_and_parallel_adapters_are_those_of_adapters(kind: str):
    net, ids = pair(kind), stored()["ids"]
    body = anatomy(net)
    with body.using("a", "b", rows=split((2, 4), len(ids))):
        close(net, kind, "split")
    twice, rows = parallel(ids, 2)
    with body.using("a", "b", rows=rows), torch.no_grad():
        torch.testing.assert_close(net(input_ids=twice).logits, stored()[f"{kind}/par.out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_fusion_and_its_penalty_are_those_of_adapters(kind: str):
    net = pair(kind)
    attached = attach(anatomy(net), made(FUSION, {}), "fused")
    places = {"bert": ("bert.encoder.layer", "output"), "gpt2": ("transformer.h", "output_adapters")}[kind]
    for name, parameter in attached.parameters.items():
        layer = next(part for part in name.split(".") if part.isdigit())
        key = f"{kind}/fusion/{places[0]}.{layer}.{places[1]}.adapter_fusion_layer.a,b." + ".".join(name.split(".")[-2:])
        parameter.data.copy_(stored()[key])
    assert len(attached.parameters) == 2 * 5
    close(net, kind, "fusion")
    assert attached.penalty_of is not None
    torch.testing.assert_close(attached.penalty_of().detach()[None], stored()[f"{kind}/fusion.penalty"])


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_compacter_is_that_of_adapters(kind: str):
    net = base(kind)
    attached = attach(anatomy(net), made("compacter", {"reduction": 4, "summands": 2, "norms": False}))
    places = {
        "bert": {"self.o": "attention.output", "o": "attention.output", "down": "output"},
        "gpt2": {"o": "attention_adapters", "down": "output_adapters"},
    }[kind]
    stem = {"bert": "bert.encoder.layer", "gpt2": "transformer.h"}[kind]
    ours = {"left_NPR": "W_left", "right_NRQ": "W_right", "bias": "b"}
    shared = f"{kind}/compacter/{stem.split('.')[0]}.shared_parameters.one.phm_rule"
    for name, parameter in attached.parameters.items():
        if name == "rule":
            parameter.data.copy_(stored()[shared])
            continue
        _, layer, role, end, which = name.split(".")
        key = f"{kind}/compacter/{stem}.{layer}.{places[role]}.adapters.one.{ {'down': 'adapter_down.0', 'up': 'adapter_up'}[end] }.{ours[which]}"
        parameter.data.copy_(stored()[key])
    close(net, kind, "compacter")


COUNTS = [
    ("t5-base", {"kind": "compacter"}, 161_728),  # 0.073 % of 222,903,552 (arXiv:2106.04647, table 1)
    ("t5-base", {"kind": "compacter", "after": ["ffn"]}, 104_704),  # Compacter++: 0.047 %
    ("bert-base", {"kind": "mad_x"}, 7_077_888 + 294_912 + 13_824 + 1_152),  # XLM-R's body; 8,282,304 with a task of 894,528
]


@pytest.mark.parametrize("name, method, count", COUNTS)
def test_parameter_counts_are_the_published_ones(name: str, method: dict, count: int):
    body = anatomy(meta(name))
    attached = attach(body, made(method, {}))
    body.remove("default")
    assert sum(p.numel() for p in attached.parameters.values()) == count


def test_a_fusion_on_bert_base_has_the_published_count():
    body = anatomy(meta("bert-base"))
    sources = {name: PFEIFFER | {"reduction": 16} for name in ("a", "b")}
    attached = attach(body, made("adapter_fusion", {"adapters": sources}), "fused")
    for name in ("fused", "a", "b"):
        body.remove(name)
    assert sum(p.numel() for p in attached.parameters.values()) == 21_252_096


def test_a_hypercomplex_product_is_the_sum_of_kronecker_products():
    torch.manual_seed(0)
    phm = PHM(torch.zeros(1), 12, 8, 2, nn.Parameter(torch.randn(4, 4, 4)))
    x = torch.randn(3, 5, 12)
    matrix = torch.stack([torch.kron(a, s @ t) for a, s, t in zip(phm.rule_NAC, phm.left_NPR, phm.right_NRQ, strict=True)]).sum(0)
    torch.testing.assert_close(phm(x), x @ matrix + phm.bias)
    with pytest.raises(ValueError, match="must divide by summands=4"):
        attach(anatomy(build("our bert")), made("compacter", {"reduction": 16}))


@pytest.mark.parametrize("width", [32, 7])
def test_an_invertible_adapter_is_undone_exactly(width: int):
    torch.manual_seed(0)
    nice = NICE(torch.zeros(1, 1), width, "relu", 0.2)
    x = torch.randn(2, 3, width)
    assert not torch.allclose(nice(x), x)
    torch.testing.assert_close(nice.inverse(nice(x)), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["our bert", "bert"])
def test_languages_are_swapped_under_a_task(kind: str):
    net = build(kind)
    body = anatomy(net)
    for name, method in [("en", MADX), ("de", MADX), ("ner", PFEIFFER)]:
        torch.manual_seed(len(name) + ord(name[0]))
        attached = attach(body, made(method, {}), name)
        with torch.no_grad():
            for parameter in attached.parameters.values():
                parameter.add_(0.1 * torch.randn_like(parameter))
    outs = {}
    for names in [("en", "ner"), ("de", "ner"), ("ner",), ("en",)]:
        body.activate(*names)
        outs[names] = logits(net)
    values = list(outs.values())
    assert all(not torch.allclose(one, other) for i, one in enumerate(values) for other in values[:i])
    body.activate("en", "ner")
    torch.testing.assert_close(logits(net), outs["en", "ner"], rtol=0, atol=0)


def _two(kind: str) -> nn.Module:
    net = build(kind)
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        attached = attach(anatomy(net), made(PFEIFFER, {}), name)
        with torch.no_grad():
            for parameter in attached.parameters.values():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize("kind", ["our llama", "llama", "our bert", "bart"])
def test_a_fusion_trains_alone_and_stands_in_mixed_rows(kind: str):
    net = _two(kind)
    body = anatomy(net)
    with body.using("a"):
        alone = logits(net)
    attached = attach(body, made(FUSION, {}), "fused")
    assert {id(p) for p in net.parameters() if p.requires_grad} == {id(p) for p in attached.parameters.values()}
    shake(attached.parameters)
    (logits(net).square().mean() + attached.penalty()).backward()  # type: ignore[operator]
    assert all((p.grad != 0).all() for name, p in attached.parameters.items() if not name.endswith("key.bias"))  # softmax is blind to it
    fused = logits(net)
    with body.using("a", "fused", rows=torch.tensor([[1], [0]])):
        torch.testing.assert_close(logits(net), torch.stack([fused[0], alone[1]]))
    with body.using():
        torch.testing.assert_close(logits(net), logits(build(kind)))


@pytest.mark.parametrize("kind", ["our bert", "llama"])
def test_a_fusion_is_one_artefact_with_its_adapters(kind: str, tmp_path):
    net = _two(kind)
    body = anatomy(net)
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        body.remove(name)
        single = attach(body, made(PFEIFFER, {}), name)
        shake(single.parameters)
        single.save(tmp_path / name)
        body.remove(name)
    method = {"kind": "adapter_fusion", "adapters": {name: str(tmp_path / name) for name in ("a", "b")}}
    attached = attach(body, made(method, {}), "fused")
    shake(attached.parameters)
    want = logits(net)
    attached.save(tmp_path / "fused")
    for name in ("a", "b"):
        (tmp_path / name).rename(tmp_path / f"no {name}")
    again = build(kind)
    read(anatomy(again), tmp_path / "fused", "fused")
    torch.testing.assert_close(logits(again), want, rtol=0, atol=1e-5)
    assert set(anatomy(again).adapters) == {"a", "b", "fused"}


def test_an_average_of_lora_is_merged_and_one_of_values_is_their_mean():
    net = build("our gpt2")
    body = anatomy(net)
    for name, method in [("a", "lora"), ("b", "lora"), ("c", "bitfit"), ("d", "bitfit")]:
        torch.manual_seed(ord(name))
        attached = attach(body, made(method, {}), name)
        with torch.no_grad():
            for parameter in attached.parameters.values():
                parameter.add_(0.1 * torch.randn_like(parameter))
    average(body, {"c": 0.25, "d": 0.75}, "biases")
    site = body.find("up")[0]
    one, two = (site.adapter(name).own["bias"] for name in "cd")  # type: ignore[union-attr, index]
    torch.testing.assert_close(site.adapter("biases").values(site.around.parameters_by_name())["bias"], 0.25 * one + 0.75 * two)  # type: ignore[union-attr]
    average(body, {"a": 0.5, "b": 0.5}, "terms")
    body.activate("terms", "biases")
    want = logits(net)
    assert merge(body) < 1e-4
    assert (logits(net) - want).abs().max() < 1e-4


def test_a_token_takes_the_adapter_of_its_span():
    net, ids = _two("our llama"), tokens()
    body = anatomy(net)
    with body.using("a"):
        alone = logits(net)
    with body.using("a", "b", rows=split((8,), 2)):
        torch.testing.assert_close(logits(net), alone)
    with body.using("a", "b", rows=split((3, 5), 2)):
        torch.testing.assert_close(logits(net)[:, :3], alone[:, :3])
        assert not torch.allclose(logits(net)[:, 3:], alone[:, 3:])
    assert split((3, 5)).shape == (1, ids.shape[1])


def test_what_cannot_be_composed_is_refused_in_words():
    net = _two("our llama")
    body = anatomy(net)
    with pytest.raises(ValueError, match="no adapter called 'c' on the model"):
        attach(body, made("adapter_fusion", {"adapters": {"a": "", "c": ""}}), "f")
    with pytest.raises(ValueError, match="two adapters at least"):
        made("adapter_fusion", {"adapters": {"a": ""}})
    with pytest.raises(ValueError, match="attached first"):
        average(body, {"a": 0.5, "c": 0.5}, "mean")
    shake(attach(body, made("adapter", {"width": 4}), "c").parameters)
    with pytest.raises(ValueError, match="cannot be fused; train adapters with norms: false"):
        attach(body, made("adapter_fusion", {"adapters": {"a": "", "c": ""}}), "f")
    assert set(body.adapters) == {"a", "b", "c"}


METHODS = {
    "houlsby": {"kind": "adapter", "width": 4, "start": 0.3},
    "pfeiffer": PFEIFFER | {"start": 0.3},
    "parallel": {"kind": "adapter", "reads": "in", "width": 4, "start": 0.3, "norms": False},
    "compacter": {"kind": "compacter", "reduction": 8, "summands": 2, "start": 0.5},
    "mad_x": MADX | {"start": 0.3},
    "fusion": {"kind": "adapter_fusion", "adapters": dict.fromkeys(("a", "b"), PFEIFFER | {"start": 0.3})},
}
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def working(kind: str, method: dict) -> nn.Module:
    net = build(kind)
    torch.manual_seed(0)
    shake(attach(anatomy(net), made(method, {}), "one").parameters)
    assert not torch.allclose(logits(net), logits(build(kind)))
    return net


@every
def test_generation_with_a_cache_is_greedy_without(method: dict):
    net = working("our llama", method)
    prompts = [tokens()[0].tolist(), tokens()[1, :5].tolist()]
    got = generate_ids(net, prompts, Sampling(max_tokens=5, temperature=0.0))  # type: ignore[arg-type]
    for prompt, answer in zip(prompts, got, strict=True):
        ids = prompt
        for token in answer:
            assert int(net(torch.tensor([ids]))[0, -1].argmax()) == token
            ids = [*ids, token]


@every
def test_padding_changes_nothing(method: dict):
    net, ids = working("our llama", method), tokens()[:1]
    want = net(ids)
    for pad in (0, 5):
        padding = torch.full((1, 3), pad)
        mask = torch.cat([torch.zeros(1, 3), torch.ones_like(ids)], 1).bool()
        torch.testing.assert_close(net(torch.cat([padding, ids], 1), mask)[:, 3:], want)
        torch.testing.assert_close(net(torch.cat([ids, padding], 1), mask.flip(1))[:, :8], want)


@every
@pytest.mark.parametrize("kind", ["our llama", "bert"])
def test_two_threads_do_not_meet_and_a_call_that_fails_leaves_the_model_usable(kind: str, method: dict):
    net = working(kind, method)
    want = logits(net)
    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(lambda _: logits(net), range(8)):
            torch.testing.assert_close(got, want)
    torch.testing.assert_close(logits(net), want, rtol=0, atol=0)
    where = "o" if method.get("after") is None and method["kind"] in ("adapter", "compacter") else "down"
    handle = anatomy(net).find(where)[-1].module.register_forward_hook(_fails)
    with pytest.raises(RuntimeError, match="on purpose"):
        logits(net)
    handle.remove()
    torch.testing.assert_close(logits(net), want, rtol=0, atol=0)


def _fails(*_: object) -> None:
    raise RuntimeError("on purpose")


def test_a_fusion_has_a_head_of_its_own_and_keeps_those_of_its_adapters(tmp_path):
    def fresh() -> nn.Module:
        torch.manual_seed(1)
        net = build("our bert")
        net.add_head("classify", 3)  # type: ignore[operator]
        return net.eval()

    def scores(net: nn.Module) -> Tensor:
        return net.heads["classify"](net.hidden(tokens())[:, 0])  # type: ignore[index, operator]

    alone = {}
    for name in ("a", "b"):
        net = fresh()
        torch.manual_seed(ord(name))
        attached = attach(anatomy(net), made(PFEIFFER | {"start": 0.3}, {}), name)
        assert any("classif" in key or "head" in key for key in attached.parameters)
        shake(attached.parameters, 0.1 if name == "a" else 0.2)
        alone[name] = scores(net)
        attached.save(tmp_path / name)
    net = fresh()
    body = anatomy(net)
    method = {"kind": "adapter_fusion", "adapters": {name: str(tmp_path / name) for name in ("a", "b")}}
    attached = attach(body, made(method, {}), "fused")
    assert body.active == ("fused",)
    trained = {key.rpartition(".")[0].rpartition(".")[2] for key in attached.parameters}
    assert {"query", "key", "value", "out"} <= trained
    for name, want in alone.items():
        with body.using(name):
            torch.testing.assert_close(scores(net), want, rtol=0, atol=1e-5)
    with body.using("a", "b", "fused", rows=torch.tensor([[1], [0]])):
        torch.testing.assert_close(scores(net), torch.stack([alone["b"][0], alone["a"][1]]), rtol=0, atol=1e-5)


def test_a_fresh_fusion_starts_from_the_identity():
    body = anatomy(_two("our bert"))
    attached = attach(body, made(FUSION, {}), "fused")
    for name, parameter in attached.parameters.items():
        if name.endswith("value.weight"):
            torch.testing.assert_close(parameter.detach(), torch.full((32, 32), 1e-6).fill_diagonal_(1.0))
        elif name.endswith(("query.weight", "key.weight")):
            assert 0.018 < parameter.std() < 0.022
    assert attached.penalty().detach() < 1e-6  # type: ignore[union-attr]
