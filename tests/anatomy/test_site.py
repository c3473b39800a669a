"""Around: named adapters, the active set in the batch, recomputation, routing, merging, fused rows."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kinds import build, kinds, logits, shake, tokens
from luthier.anatomy.anatomy import Anatomy, anatomy
from luthier.anatomy.around import Adapter, Around
from luthier.anatomy.merge import merge
from luthier.core.recompute import recomputed
from luthier.tuning._tune import attach, made


class Plus(Adapter):
    """y + amount."""

    def __init__(self, amount: float):
        super().__init__()
        self.amount = amount

    def forward(self, base, x: Tensor) -> Tensor:
        return base(x) + self.amount


class Times(Adapter):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, base, x: Tensor) -> Tensor:
        return base(x) * self.factor


def two(net: nn.Module) -> Anatomy:
    """Adapters called small and large around q and v."""
    body = anatomy(net)
    for name, size in {"small": 0.1, "large": 0.5}.items():
        shake(attach(body, made("lora", {"rank": 2}), name).parameters, size)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("adapters" in name)
    return body


class Spy:
    """Records the queries, keys and values that reach transformers' attention."""

    def __init__(self):
        self.seen: list[dict[str, Tensor]] = []

    def ours(self, attend, q, k, v, *rest, **options):
        self.seen.append({"q": q.clone(), "k": k.clone(), "v": v.clone()})
        return attend(q, k, v, *rest, **options)

    def __call__(self, module, q, k, v, mask, **options):
        self.seen.append({"q": q.clone(), "k": k.clone(), "v": v.clone()})
        options.pop("softcap", None)
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, q, k, v, mask, **options)


@kinds
@pytest.mark.parametrize("role", "qkv")
def test_a_role_is_what_it_says(kind: str, role: str):
    """Whatever goes around q changes the queries that reach attention, and only them."""
    net, spy = build(kind), Spy()
    if kind.startswith("our"):
        for block in net.blocks:  # type: ignore[union-attr]
            block.attn.attend = partial(spy.ours, block.attn.attend)  # type: ignore[union-attr]
    elif kind == "bloom":
        pytest.skip("bloom's attention does not go through the registry; its rows are tested below")
    else:
        ALL_ATTENTION_FUNCTIONS.register("spy", spy)
        ALL_MASK_ATTENTION_FUNCTIONS.register("spy", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        net.set_attn_implementation("spy")  # type: ignore[operator]
    logits(net)
    calls = len(spy.seen)
    body = anatomy(net)
    site = body.find(role, layers=0)[0]
    site.wrap("plus", Plus(1.0))
    body.activate("plus")
    logits(net)
    assert calls > 0
    changed = {r for r in "qkv" if not torch.equal(spy.seen[0][r], spy.seen[calls][r])}
    assert changed == {role}


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "bloom", "phi3", "modernbert"])
def test_the_rows_of_a_fused_projection_are_taken_apart(kind: str):
    """The weights of q, k and v make up the whole, each row once; the shapes are those of the heads."""
    body = anatomy(build(kind))
    sites = body.find("q", "k", "v", layers=0)
    rows = torch.cat([site.rows for site in sites if site.rows is not None])
    assert sorted(rows.tolist()) == list(range(len(rows)))
    assert len({site.path for site in sites}) == 1
    assert sites[0].weight.shape == (32, 32)


def test_adapters_stack_in_order_the_last_outermost():
    net = nn.Linear(4, 4)
    around = Around(net, anatomy(build("our gpt2")).switch)
    around.adapters["plus"], around.adapters["times"] = Plus(1.0), Times(3.0)
    x = torch.randn(2, 4)
    with around.switch.using(("plus", "times")):
        torch.testing.assert_close(around(x), (net(x) + 1) * 3)
    with around.switch.using(("times", "plus")):
        torch.testing.assert_close(around(x), net(x) * 3 + 1)
    torch.testing.assert_close(around(x), net(x))


def test_the_base_is_called_once_for_one_input():
    calls = []

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(x)
            return super().forward(x)

    class Twice(Adapter):
        def forward(self, base, x: Tensor) -> Tensor:
            return base(x) + base(x) + base(2 * x)

    around = Around(Counted(4, 4), anatomy(build("our gpt2")).switch)
    around.adapters["twice"] = Twice()
    around.switch.default = ("twice",)
    around(torch.randn(3, 4))
    assert len(calls) == 2


@pytest.mark.parametrize("kind", ["our llama", "our bert", "llama", "gpt2"])
def test_recomputation_repeats_the_set_of_its_batch(kind: str):
    """The set changes between forward and backward; the gradients are those of the set that ran forward."""
    grads = []
    for recompute in (False, True):
        net = build(kind)
        body = two(net)
        if recompute and kind.startswith("our"):
            net.recompute = True  # type: ignore[assignment]
        elif recompute:
            net.train()
            net._set_gradient_checkpointing(True, recomputed)  # type: ignore[operator]
            for module in net.modules():
                module.training = module.training and not isinstance(module, nn.Dropout)
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        body.activate("small")
        with body.using("large"):
            loss = logits(net).square().mean()
        body.activate()
        loss.backward()
        grads.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None and "adapters" in n})
    assert all("large" in name for name in grads[0])
    assert grads[0].keys() == grads[1].keys() and grads[0]
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6)


def test_two_batches_in_flight_keep_their_own_sets():
    net = build("our llama")
    body = two(net)
    losses = {}
    for name in ("small", "large"):
        with body.using(name):
            losses[name] = logits(net).square().mean()
    losses["small"].backward()
    touched = {name for name, p in net.named_parameters() if p.grad is not None}
    assert touched and all("small" in name for name in touched)


def test_an_error_inside_leaves_the_set_as_it_was():
    net = build("our llama")
    body = two(net)
    with pytest.raises(RuntimeError), body.using("small"):
        raise RuntimeError
    assert body.active == ("large",)
    assert logits(net).isfinite().all()


@pytest.mark.parametrize("kind", ["our llama", "gpt2", "bert"])
def test_rows_of_a_batch_take_their_own_adapters(kind: str):
    net = build(kind)
    body = two(net)
    alone = {}
    for names in ((), ("small",), ("large",)):
        with body.using(*names):
            alone[names] = logits(net)
    with body.using("small", "large", rows=torch.tensor([[1], [-1]])):
        mixed = logits(net)
    torch.testing.assert_close(mixed[0], alone["large",][0])
    torch.testing.assert_close(mixed[1], alone[()][1])


def test_tokens_of_a_packed_row_take_their_own_adapters():
    net = build("our llama")
    body = two(net)
    ids = tokens().view(1, 16)
    with body.using("small", "large", rows=torch.tensor([[0] * 8 + [1] * 8])):
        mixed = net(ids, lengths=(8, 8))
    with body.using("small"):
        torch.testing.assert_close(mixed[:, :8], net(ids, lengths=(8, 8))[:, :8])
    with body.using("large"):
        torch.testing.assert_close(mixed[:, 8:], net(ids, lengths=(8, 8))[:, 8:])


def test_rows_that_do_not_fit_are_refused():
    net = build("our llama")
    body = two(net)
    with pytest.raises(ValueError, match="one per token or per row"), body.using("small", rows=torch.zeros(5, 3, dtype=torch.long)):
        logits(net)


def test_low_rank_terms_are_stated_only_when_that_is_all():
    net = build("our llama")
    body = anatomy(net)
    attach(body, made("lora", {"dropout": 0.1}))
    around = body.find("q", layers=0)[0].around
    assert around is not None and around.low_rank() is not None
    linear, terms = around.low_rank() or (None, [])
    assert linear is around.base and len(terms) == 1 and terms[0].scale == 2.0
    net.train()
    assert around.low_rank() is None  # dropout is on
    net.eval()
    with body.using():
        assert around.low_rank() == (around.base, [])
    around.adapters["plus"] = Plus(1.0)
    with body.using("default", "plus"):
        assert around.low_rank() is None
    with body.using("default", rows=torch.zeros(2, 1, dtype=torch.long)):
        assert around.low_rank() is None


def test_what_is_not_linear_cannot_be_merged_and_nothing_changes():
    net = build("our gpt2")
    body = anatomy(net)
    body.find("q", layers=0)[0].wrap("plus", Plus(1.0))
    body.activate("plus")
    before = logits(net)
    with pytest.raises(ValueError, match="cannot be merged"):
        merge(body)
    torch.testing.assert_close(logits(net), before, rtol=0, atol=0)


def test_merging_into_one_side_of_a_tie_is_refused():
    net = build("our gpt2")
    body = anatomy(net)
    shake(attach(body, made("lora", {"roles": ("embed", "q")})).parameters)
    before = logits(net)
    with pytest.raises(ValueError, match="tied"):
        merge(body)
    torch.testing.assert_close(logits(net), before, rtol=0, atol=0)


def test_replacing_a_base_keeps_the_adapters():
    net = build("our gpt2")
    body = anatomy(net)
    attach(body, made("lora", {}))
    site = body.find("q", layers=0)[0]
    other = nn.Linear(32, 32)
    site.replace(other)
    assert site.module is other and site.adapter("default") is not None


def test_the_base_state_shows_no_wrapping():
    net = build("our gpt2")
    names = set(net.state_dict())
    body = anatomy(net)
    attach(body, made("lora", {"also_train": ("embed", "norm")}))
    assert {*body.state()} | {"heads.lm.out.weight"} == names | {"heads.lm.out.weight"}
    assert not any(".base." in name for name in body.state())
