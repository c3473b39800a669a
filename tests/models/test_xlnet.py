"""XLNet equals transformers': content and query streams, permuted orders, memory, segments, heads; and no query sees what it may not."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import nn
from transformers.models.xlnet.modeling_xlnet import XLNetModel

sys.path.insert(0, str(Path(__file__).parent))
from mutations import each
from oracles import FLOOR, gap, head_scores, sample

from luthier.core.cache import Cache
from luthier.core.names import export_state, import_state
from luthier.core.relative import RelativeAttention
from luthier.models.xlnet import XLNet
from luthier.sources.load import load_model
from luthier.sources.model import Model
from luthier.tuning._tune import tune

SMALL = dict(vocab_size=60, d_model=32, n_layer=3, n_head=4, d_inner=48, mem_len=None, dropout=0.1)


@pytest.fixture(autouse=True)
def float64_distances(monkeypatch):
    plain = XLNetModel.relative_positional_encoding
    monkeypatch.setattr(
        XLNetModel, "relative_positional_encoding", lambda self, *a, **k: plain(self, *a, **k).to(torch.get_default_dtype())
    )


def reference(cls=hf.XLNetLMHeadModel, **changes):
    model = cls(hf.XLNetConfig(**SMALL | changes)).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (1.0 if p.dim() == 1 and "weight" in name else 0.0))
    return model.eval()


def ours(model, heads=None, **changes):
    arch = XLNet.from_config(model.config.to_dict())
    stored = {arch.aliases(name): tensor for name, tensor in model.state_dict().items() if arch.aliases(name)}
    arch = replace(arch.fit(set(stored)), **changes)
    net = arch.build()
    for head, labels in (heads or {}).items():
        net.add_head(head, labels)
    net.load_state_dict(import_state(arch.names(heads or {"lm": 60}), stored), strict=False)
    return net.eval()


def order(batch: int, length: int, seed: int = 0):
    """allow (B, T, T): j comes before i in a random order."""
    rank = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return rank[:, None, :] < rank[:, :, None]


def inputs(length: int = 200):
    types = (torch.arange(length) // 70 % 2).expand(2, -1)
    return sample(2, length), types


@torch.no_grad()
def test_the_content_stream_equals_transformers():
    model = reference()
    ids, types = inputs()
    net = ours(model)
    assert gap(net(ids), model(ids).logits) < FLOOR
    assert gap(net(ids, types=types), model(ids, token_type_ids=types).logits) < FLOOR
    mask = torch.ones(2, 200, dtype=torch.bool)
    mask[1, :60] = False
    assert gap(net(ids, mask, types=types)[mask], model(ids, attention_mask=mask.double(), token_type_ids=types).logits[mask]) < FLOOR


@torch.no_grad()
def test_both_streams_equal_transformers_in_any_order():
    """But for the first of each order, which sees nothing: theirs then sees everything."""
    model = reference()
    (ids, types), allow = inputs(), order(2, 200)
    targets = torch.stack([torch.randperm(200, generator=torch.Generator().manual_seed(i))[:30] for i in range(2)])
    mapping = nn.functional.one_hot(targets, 200).double()
    want = model(ids, token_type_ids=types, perm_mask=(~allow).double(), target_mapping=mapping).logits
    net = ours(model)
    got = net(ids, types=types, allow=allow, targets=targets)
    sighted = allow.any(-1).gather(1, targets)
    assert gap(got[sighted], want[sighted]) < FLOOR
    content = model(ids, token_type_ids=types, perm_mask=(~allow).double()).logits
    assert gap(net(ids, types=types, allow=allow), content) < FLOOR


@torch.no_grad()
def test_memory_equals_transformers_over_three_segments():
    model = reference(mem_len=50)
    ids, types = inputs(120)
    net, cache, mems = ours(model), Cache(3), None
    stepping = ours(model)
    for i, (part, kinds) in enumerate(zip(ids.split(40, 1), types.split(40, 1), strict=True)):
        allow = order(2, 40, seed=i) if i == 2 else None
        perm = None if allow is None else (~allow).double()
        out = model(part, token_type_ids=kinds, perm_mask=perm, mems=mems, use_mems=True)
        mems = out.mems
        assert gap(net(part, types=kinds, allow=allow, cache=cache), out.logits) < FLOOR
    targets = torch.arange(40).expand(2, -1)
    query, again = Cache(3), Cache(3)
    for other in (query, again):
        stepping(ids[:, :80], cache=other)
    allow = order(2, 40)
    mems = [mem[-50:] for mem in model(ids[:, :80], use_mems=True).mems]
    mapping = torch.eye(40, dtype=torch.float64).expand(2, -1, -1)
    want = model(ids[:, 80:], perm_mask=(~allow).double(), target_mapping=mapping, mems=mems).logits
    assert gap(stepping(ids[:, 80:], allow=allow, targets=targets, cache=query), want) < FLOOR


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"mem_len": 8, "clamp_len": 5}])
def test_what_follows_a_text_is_what_a_query_behind_it_finds(changes):
    net, ids = ours(reference(**changes)), sample(2, 30)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[1, :11] = False
    allow = torch.ones(1, 31, 31, dtype=torch.bool)
    allow[..., -1] = False
    for real in (None, mask):
        longer = nn.functional.pad(ids, (0, 1), value=7)
        seen = None if real is None else nn.functional.pad(real, (0, 1), value=True)
        want = net(longer, seen, allow=allow, targets=torch.full((2, 1), 30))[:, 0]
        assert gap(net.following(ids, real), want) < FLOOR
    tune(Model(net, source="xlnet"), "prompt", length=3)  # its tokens stand before the text, and the query sees them
    assert gap(net.following(ids), want) > 1e-3


@torch.no_grad()
def test_no_query_sees_its_own_token_or_a_later_one_of_the_order():
    net = ours(reference())
    ids, allow = sample(1, 12), order(1, 12)
    targets = torch.arange(12)[None]
    before = net(ids, allow=allow, targets=targets)
    for changed in range(12):
        other = ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 57 + 3
        same = (net(other, allow=allow, targets=targets) == before).all(-1)[0]
        reached = allow[0, :, changed]
        assert same[~reached].all() and not same[reached].any()
    assert int((~allow.any(-1)).sum()) == 1  # the first of the order is among them


def test_gradients_equal_transformers_in_every_element():
    model = reference()
    net = ours(model)
    (ids, types), allow = inputs(40), order(2, 40)
    targets = allow.sum(-1).argsort(-1)[:, 20:]  # the second half of the order: all of them see something
    mapping = nn.functional.one_hot(targets, 40).double()
    sign = torch.randn(60, generator=torch.Generator().manual_seed(1))
    (net(ids, types=types, allow=allow, targets=targets) * sign).sum().backward()
    (model(ids, token_type_ids=types, perm_mask=(~allow).double(), target_mapping=mapping).logits * sign).sum().backward()
    stored = {net.config.aliases(name): p for name, p in model.named_parameters()}
    names = net.config.names({"lm": 60})
    for name, p in net.named_parameters():
        want = stored[names[name].path].grad
        if names[name].shape is not None:
            want = want.flatten(1).T if names[name].transposed else want.flatten(1)
        torch.testing.assert_close(p.grad, want, rtol=1e-9, atol=1e-9 * float(want.abs().max() + 1e-3), msg=name)


def test_what_we_save_gives_transformers_our_logits(tmp_path):
    model = reference()
    model.save_pretrained(tmp_path / "theirs")
    mine = load_model(tmp_path / "theirs")
    with torch.no_grad():
        for p in mine.net.parameters():
            p.mul_(1.01)
        mine.save(tmp_path / "ours")
        ids, types = inputs()
        again = hf.XLNetLMHeadModel.from_pretrained(tmp_path / "ours").double().eval()  # it reads some in float32
        missing, unexpected = again.load_state_dict(load_file(tmp_path / "ours" / "model.safetensors"), strict=False)
        assert not unexpected and missing == ["lm_loss.weight"]
        assert gap(again(ids, token_type_ids=types).logits, mine.logits(ids, types=types)) < FLOOR
    assert torch.equal(load_model(tmp_path / "ours").logits(ids), mine.logits(ids))
    table = export_state(mine.net.config.names({"lm": 60}), dict(mine.net.state_dict()))
    assert table["transformer.layer.0.rel_attn.q"].shape == (32, 4, 8)


@pytest.mark.parametrize(
    ("head", "labels", "cls"),
    [
        ("classify", 3, hf.XLNetForSequenceClassification),
        ("tag", 5, hf.XLNetForTokenClassification),
        ("spans", 2, hf.XLNetForQuestionAnsweringSimple),
        ("choose", 1, hf.XLNetForMultipleChoice),
    ],
)
@torch.no_grad()
def test_heads_equal_transformers(head, labels, cls):
    model = reference(cls, num_labels=labels)
    net = ours(model, {head: labels})
    ids = sample(2, 60)
    want = head_scores(model, head, ids)
    hidden = net.hidden(ids)
    assert net.pool == "last"
    assert gap(net.heads[head](hidden if head in ("tag", "spans") else hidden[:, -1]), want) < FLOOR


def swap(one: str, other: str):
    def change(part):
        a, b = getattr(part, one), getattr(part, other)
        setattr(part, one, b)
        setattr(part, other, a)

    return each(RelativeAttention, change)


MUTANTS = {
    "eps": (lambda a: {"eps": a.eps * 10}, None),
    "tanh gelu": (lambda a: {"act": "gelu_tanh"}, None),
    "clamped": (lambda a: {"clamp": 190}, None),
    "u and v": (lambda a: {}, swap("content", "distance")),
    "s and u": (lambda a: {}, swap("segment", "content")),
    "segments the other way": (lambda a: {}, each(RelativeAttention, lambda m: m.segments.data.copy_(m.segments.data.flip(0)))),
    "another start": (lambda a: {}, lambda net: net.mask_vector.mul_(1.001)),
    "head turned": (lambda a: {}, each(RelativeAttention, lambda m: m.o.weight.data.copy_(m.o.weight.data.flip(1)))),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@torch.no_grad()
def test_the_parity_test_catches(mutant):
    change, alter = MUTANTS[mutant]
    model = reference()
    net = ours(model, **change(ours(model).config))
    if alter is not None:
        alter(net)
    (ids, types), allow = inputs(), order(2, 200)
    targets = allow.sum(-1).argsort(-1)[:, 100:]
    mapping = nn.functional.one_hot(targets, 200).double()
    want = model(ids, token_type_ids=types, perm_mask=(~allow).double(), target_mapping=mapping).logits
    assert gap(net(ids, types=types, allow=allow, targets=targets), want) > 10 * FLOOR


@torch.no_grad()
def test_packing_and_left_padding_change_nothing():
    net = ours(reference())
    ids, types = inputs(60)
    parts = zip(ids[:1].split((20, 1, 39), 1), types[:1].split((20, 1, 39), 1), strict=True)
    alone = torch.cat([net.hidden(part, types=kinds) for part, kinds in parts], 1)
    assert gap(net.hidden(ids[:1], lengths=(20, 1, 39), types=types[:1]), alone) < FLOOR
    mask = torch.ones(2, 60, dtype=torch.bool)
    mask[0, :25] = False
    assert gap(net.hidden(ids, mask)[0, 25:], net.hidden(ids[:1, 25:])[0]) < FLOOR


def test_recomputation_gives_the_same_gradients():
    net = ours(reference())
    (ids, types), allow = inputs(30), order(2, 30)
    grads = []
    for recompute in (False, True):
        net.recompute = recompute
        net.zero_grad()
        net(ids, types=types, allow=allow, targets=torch.arange(30).expand(2, -1)).square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_both_streams_are_one_graph_with_equal_states():
    net = ours(reference())
    (ids, types), allow = inputs(30), order(2, 30)
    targets = torch.arange(30).expand(2, -1)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        want = net(ids, types=types, allow=allow, targets=targets)
        assert gap(compiled(ids, types=types, allow=allow, targets=targets), want) < FLOOR


def test_adapters_go_on_both_streams_at_once():
    net = ours(reference())
    (ids, types), allow = inputs(30), order(2, 30)
    asked = {"types": types, "allow": allow, "targets": torch.arange(30).expand(2, -1)}
    before = net(ids, **asked)
    attached = tune(Model(net, source="xlnet"), "lora", roles=["q", "v", "down"], rank=2)
    torch.testing.assert_close(net(ids, **asked), before)
    for p in attached.parameters.values():
        nn.init.normal_(p, std=0.1)
    net(ids, **asked).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in attached.parameters.values())


COUNTS = {"xlnet-base-cased": 116_750_336, "xlnet-large-cased": 360_300_800}


@pytest.mark.parametrize("preset", COUNTS)
def test_presets_have_the_published_number_of_parameters(preset):
    with torch.device("meta"):
        net = XLNet(**XLNet.presets[preset]).build()
    assert sum(p.numel() for p in net.parameters()) == COUNTS[preset]


def test_what_is_not_here_is_refused():
    base = hf.XLNetConfig(**SMALL).to_dict()
    with pytest.raises(ValueError, match="attn_type other than 'bi'"):
        XLNet.from_config(base | {"attn_type": "uni"})
    with pytest.raises(ValueError, match="a summary other than"):
        XLNet.from_config(base | {"summary_type": "mean"})
    net = ours(reference())
    with pytest.raises(ValueError, match="targets need allow"):
        net(sample(1, 5), targets=torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="for padded rows"):
        net(sample(1, 5), allow=order(1, 5), lengths=(2, 3))
