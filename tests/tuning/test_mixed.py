"""Rows of one batch under different methods: each row is the row alone, for every pair of methods, and so are the gradients."""

from functools import cache
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kinds import NO_BIAS, build, shake
from luthier import lookup
from luthier.anatomy.anatomy import Anatomy, anatomy
from luthier.core.encoder_decoder import EncoderDecoder
from luthier.core.generate import generate_ids
from luthier.core.reader import Sampling
from luthier.sources.foreign import wrap
from luthier.tuning._attached import Attached
from luthier.tuning._tune import attach, made

NARROW = {"kind": "adapter", "width": 4, "norms": False}
METHODS: dict[str, Any] = {
    "lora": {"kind": "lora", "rank": 2},
    "dora": {"kind": "lora", "rank": 2, "dora": True, "roles": ["q", "o", "down"]},
    "adalora": {"kind": "adalora", "rank": 2, "target": 1},
    "freeze": {"kind": "freeze", "blocks": [1], "norms": True},
    "bitfit": {"kind": "bitfit"},
    "prompt": {"kind": "prompt", "length": 3},
    "p_tuning": {"kind": "p_tuning", "length": 2},
    "prefix": {"kind": "prefix", "length": 3, "hidden": 8},
    "p_tuning_v2": {"kind": "p_tuning_v2", "length": 2},
    "ia3": {"kind": "ia3"},
    "adapter": {"kind": "adapter", "width": 4},
    "compacter": {"kind": "compacter", "reduction": 8, "summands": 2},
    "mad_x": {"kind": "mad_x", "reduction": 4},
    "adapter_fusion": {"kind": "adapter_fusion", "adapters": {"one": NARROW | {"start": 0.3}, "two": NARROW | {"start": 0.3}}},
    "mam": {"kind": "mam", "length": 3, "hidden": 8, "width": 4},
    "unipelt": {"kind": "unipelt", "length": 3, "hidden": 8, "rank": 2, "reduction": 8},
    "stack": [{"kind": "prompt", "length": 2}, {"kind": "lora", "rank": 2}, {"kind": "prefix", "length": 2, "hidden": 8}],
    "average": {"average": [{"kind": "lora", "rank": 2}, {"kind": "ia3"}]},
    "fuse": {"fuse": [NARROW, NARROW]},
}
QLORA = {"kind": "qlora", "rank": 2}
BESIDE_QLORA = ("lora", "prompt", "prefix", "ia3", "adapter", "unipelt", "stack", "fuse")  # over its quantised base
IDS = torch.randint(3, 99, (3, 8), generator=torch.Generator().manual_seed(1))
QUICK, SLOW = ("our gpt2", "bert"), ("our llama", "our t5", "our bert", "llama", "gpt2", "t5")
PAIRS = list(combinations(METHODS, 2))
RING = {tuple(sorted(pair, key=list(METHODS).index)) for pair in zip(METHODS, [*list(METHODS)[7:], *list(METHODS)[:7]], strict=True)}
CASES = [(kind, *pair) for kind in QUICK for pair in PAIRS] + [
    pytest.param(kind, *pair, marks=() if kind in ("llama", "gpt2") and pair in RING else pytest.mark.slow)
    for kind in SLOW
    for pair in PAIRS
]  # every method twice on the foreign decoders, the product by make test-all


@cache
def model(kind: str, quantised: bool = False) -> tuple[nn.Module, Anatomy, dict[str, Attached]]:
    """One model with every method on it, in float64."""
    net = build(kind).double()
    body, attached = anatomy(net), dict[str, Attached]()
    torch.manual_seed(0)
    for name, method in {"qlora": QLORA, **{name: METHODS[name] for name in BESIDE_QLORA}}.items() if quantised else METHODS.items():
        if kind not in NO_BIAS or name != "bitfit":
            attached[name] = attach(body, made(method, {}), name)
            shake(attached[name].parameters, 0.2)
    for each in attached.values():
        for parameter in each.parameters.values():
            parameter.requires_grad_(True)
    return net, body, attached


def said(net: nn.Module, ids: Tensor, **inputs: Any) -> Tensor:
    if type(net).__module__.startswith("luthier"):
        return net(ids, decoder_ids=ids, **inputs) if isinstance(net, EncoderDecoder) else net(ids, **inputs)
    pair = {"decoder_input_ids": ids} if getattr(net.config, "is_encoder_decoder", False) else {}
    return net(input_ids=ids, **pair, **inputs).logits


def gradients(out: Tensor, attached: Attached) -> dict[str, Tensor | None]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=out.dtype)
    found = torch.autograd.grad((out * weights).sum(), list(attached.parameters.values()), allow_unused=True, retain_graph=True)
    return dict(zip(attached.parameters, found, strict=True))


@cache
def alone(kind: str, quantised: bool, name: str, row: int) -> tuple[Tensor, dict[str, Tensor | None]]:
    net, body, attached = model(kind, quantised)
    with body.using(name):
        out = said(net, IDS[row : row + 1])[0]
    return out.detach(), gradients(out, attached[name])


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-6, atol=2e-6)  # transformers turns positions and norms in float32


@pytest.mark.parametrize("kind, first, second", CASES)
def test_a_row_is_the_row_alone_for_every_pair_of_methods(kind: str, first: str, second: str):
    if kind in NO_BIAS and "bitfit" in (first, second):
        pytest.skip("no biases here")
    check(kind, False, first, second)


@pytest.mark.parametrize("second", BESIDE_QLORA)
def test_a_row_is_the_row_alone_over_a_quantised_base(second: str):
    check("our gpt2", True, "qlora", second)


def check(kind: str, quantised: bool, first: str, second: str) -> None:
    net, body, attached = model(kind, quantised)
    with body.using(first, second, rows=torch.tensor([[0], [1], [-1]])):
        out = said(net, IDS)
    for row, name in enumerate((first, second)):
        want, grads = alone(kind, quantised, name, row)
        close(out[row].detach(), want)
        mine = gradients(out[row], attached[name])
        for key, grad in grads.items():
            if grad is not None:
                close(mine[key], grad)  # type: ignore[arg-type]
        others = gradients(out[row], attached[(second, first)[row]])
        assert all(grad is None or not grad.any() for grad in others.values())
    with body.using():
        close(out[2].detach(), said(net, IDS[2:])[0].detach())


def test_every_method_of_the_shelf_is_in_a_pair():
    used = {method["kind"] for method in METHODS.values() if isinstance(method, dict) and "kind" in method}
    assert set(lookup.names("tuning")) - used == {
        "full",
        "features",
        "qlora",
    }  # qlora has a test of its own; the others take the whole model


@pytest.mark.parametrize("kind", ["our gpt2", "our llama", "gpt2"])
@pytest.mark.parametrize(
    "first, second", [("lora", "prompt"), ("prefix", "adapter"), ("stack", "ia3"), ("mam", "p_tuning"), ("unipelt", "average")]
)
def test_a_packed_document_is_the_document_alone(kind: str, first: str, second: str):
    net = build(kind) if kind.startswith("our") else wrap(build(kind)).net
    body = anatomy(net)
    torch.manual_seed(0)
    for name in (first, second):
        shake(attach(body, made(METHODS[name], {}), name).parameters, 0.2)
    texts = (IDS[:1, :5], IDS[1:2, :3], IDS[2:])
    packed, lengths = torch.cat(texts, 1), tuple(text.shape[1] for text in texts)
    with torch.no_grad():
        with body.using(first, second, rows=torch.tensor([[1], [-1], [0]])):
            out = net.hidden(packed, lengths=lengths).split(lengths, 1)
        for text, got, names in zip(texts, out, ((second,), (), (first,)), strict=True):
            with body.using(*names):
                torch.testing.assert_close(got, net.hidden(text), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "first, second", [("lora", "prompt"), ("prefix", "bitfit"), ("ia3", "mam"), ("stack", "unipelt"), ("p_tuning", "stack")]
)
@pytest.mark.parametrize("kind", ["our gpt2", "our t5"])
def test_generation_of_mixed_rows_is_that_of_each_alone(kind: str, first: str, second: str):
    if kind in NO_BIAS and "bitfit" in (first, second):
        pytest.skip("no biases here")
    net = build(kind)
    body = anatomy(net)
    torch.manual_seed(0)
    for name in (first, second):
        shake(attach(body, made(METHODS[name], {}), name).parameters, 0.2)
    prompts, sampling = [IDS[0].tolist(), IDS[1, :4].tolist()], Sampling(max_tokens=5, temperature=0.0)
    want = []
    for prompt, name in zip(prompts, (first, second), strict=True):
        with body.using(name):
            want += generate_ids(net, [prompt], sampling)
    with body.using(first, second, rows=torch.tensor([[0], [1]])):
        assert generate_ids(net, prompts, sampling) == want


def test_what_cannot_be_mixed_is_refused_in_words():
    net = build("t5")
    body = anatomy(net)
    attach(body, made({"kind": "freeze", "blocks": None}, {}), "one")
    attach(body, made({"parallel": [METHODS["lora"], "ia3"]}, {}), "two")
    attach(body, made(METHODS["prompt"], {}), "three")
    want = said(net, IDS)
    with (
        pytest.raises(ValueError, match="what one output gives to all rows .* cannot be mixed"),
        body.using("one", rows=torch.tensor([[0], [0], [-1]])),
    ):
        said(net, IDS)  # the table of distances is one for all rows
    with (
        pytest.raises(ValueError, match="two is parallel: .* put one of them to work: two_lora, two_ia3"),
        body.using("one", "two", rows=torch.zeros(3, 1)),
    ):
        said(net, IDS)
    with (
        pytest.raises(ValueError, match=r"virtual tokens stand before whole texts: rows of shape \(3, 8\)"),
        body.using("three", rows=torch.zeros(3, 8)),
    ):
        said(net, IDS)
    llama = build("our llama")
    attach(anatomy(llama), made({"split": ["lora", "ia3"], "lengths": [2]}, {}))
    told = "a split gives its members parts of one text, so it does not go with rows"
    with pytest.raises(ValueError, match=told), anatomy(llama).using("default", rows=torch.tensor([[0], [-1], [0]])):
        said(llama, IDS)
    with pytest.raises(ValueError, match="full takes the whole model, and adapters are on it"):
        attach(body, made("full", {}), "four")
    torch.testing.assert_close(said(net, IDS), want, rtol=0, atol=0)
