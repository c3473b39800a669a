"""Our nets give transformers' numbers, both ways, in float64 at 200 tokens; and each mutant of them is caught."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from mutations import general
from oracles import DECODERS, DROPOUT, EXEMPT, FLOOR, HEADS, KINDS, MUTANTS, dropped, gap, head_scores, ours, reference, sample, theirs

from luthier.core.names import import_tensor

kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@torch.no_grad()
def test_logits_equal_transformers(kind):
    model = reference(kind)
    assert gap(ours(kind, model)(sample()), model(sample()).logits) < FLOOR


@kinds
@torch.no_grad()
def test_what_we_save_gives_transformers_our_logits(kind):
    model = reference(kind)
    net = ours(kind, model)
    for p in net.parameters():
        p.mul_(1.01)
    assert gap(theirs(kind, net, model)(sample()).logits, net(sample())) < FLOOR


@kinds
def test_gradients_equal_transformers_in_every_element(kind):
    model = reference(kind)
    net = ours(kind, model)
    names = net.config.names(dict.fromkeys(net.heads, 0))
    sign = torch.randn(60, generator=torch.Generator().manual_seed(1))
    (net(sample(1, 50)) * sign).sum().backward()
    (model(sample(1, 50)).logits * sign).sum().backward()
    stored = {net.config.aliases(name): p for name, p in model.named_parameters()}
    for name, p in net.named_parameters():
        if name.startswith("pooler"):
            continue
        where = names[name]
        want = import_tensor(where, stored[where.path].grad)
        # the key bias has no effect without rotary positions: zero by algebra
        torch.testing.assert_close(p.grad, want, rtol=1e-9, atol=1e-9 * float(want.abs().max() + 1e-3), msg=name)


@torch.no_grad()
def test_bert_reads_segments_and_padding_as_transformers_does():
    model = reference("bert")
    ids, types = sample(2, 200), torch.arange(200).expand(2, 200) // 90 % 2
    mask = torch.ones(2, 200, dtype=torch.bool)
    mask[1, 150:] = False
    want = model(ids, attention_mask=mask.long(), token_type_ids=types).logits
    assert gap(ours("bert", model)(ids, mask, types=types)[mask], want[mask]) < FLOOR


@pytest.mark.parametrize(("kind", "head", "labels", "cls"), HEADS)
@torch.no_grad()
def test_heads_equal_transformers(kind, head, labels, cls):
    model = reference(kind, cls, num_labels=labels, pad_token_id=0)
    net = ours(kind, model, {head: labels})
    ids = sample(2, 60)
    want = head_scores(model, head, ids)
    hidden = net.hidden(ids)
    states = hidden if head in ("tag", "spans") else hidden[:, -1 if net.pool == "last" else 0]
    assert gap(net.heads[head](states), want) < FLOOR


EVERY = general(list(KINDS), DECODERS) | MUTANTS
SWEEP = [(mutant, kind) for mutant, (_, _, where) in EVERY.items() for kind in where if kind not in EXEMPT.get(mutant, [])]


@pytest.mark.parametrize(("mutant", "kind"), SWEEP)
@torch.no_grad()
def test_the_parity_test_catches(mutant, kind):
    change, alter, _ = EVERY[mutant]
    model = reference(kind)
    net = ours(kind, model, **change(ours(kind, model).config))
    if alter is not None:
        alter(net)
    assert gap(net(sample()), model(sample()).logits) > 10 * FLOOR


@pytest.mark.parametrize("kind", DROPOUT)
def test_dropout_falls_where_transformers_lets_it_fall(kind, monkeypatch):
    seen = dropped(monkeypatch)
    model = reference(kind, **DROPOUT[kind]).train()
    net = ours(kind, model).train()
    model(sample(1, 20))
    want, seen[:] = list(seen), []
    net(sample(1, 20))
    assert seen == want


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_drops_the_same(kind):
    net = ours(kind, reference(kind)).train()
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(net(sample(1, 30)))
    assert torch.equal(outs[0], outs[1])
    drops = any(rate for field, rate in vars(net.config).items() if "dropout" in field)
    assert torch.equal(outs[0], outs[2]) != drops
