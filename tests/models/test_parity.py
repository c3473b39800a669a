"""Our nets give transformers' numbers, both ways, in float64 at 200 tokens; and each mutant of them is caught."""

import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from oracles import FLOOR, KINDS, gap, ours, reference, sample, theirs

from luthier.core.attention import Attention
from luthier.core.block import Block, PostNorm, PreNorm

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
        want = stored[where.path].grad
        want = want.T if where.transposed else want
        want = want if where.rows is None else want[slice(*where.rows)]
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


HEADS = [
    ("bert", "classify", 3, hf.BertForSequenceClassification),
    ("bert", "tag", 5, hf.BertForTokenClassification),
    ("bert", "spans", 2, hf.BertForQuestionAnswering),
    ("bert", "choose", 1, hf.BertForMultipleChoice),
    ("bert", "regress", 1, hf.BertForSequenceClassification),
    ("gpt2", "classify", 3, hf.GPT2ForSequenceClassification),
    ("gpt2", "tag", 5, hf.GPT2ForTokenClassification),
    ("gpt2", "spans", 2, hf.GPT2ForQuestionAnswering),
    ("llama", "classify", 3, hf.LlamaForSequenceClassification),
    ("llama", "tag", 5, hf.LlamaForTokenClassification),
    ("llama", "spans", 2, hf.LlamaForQuestionAnswering),
    ("qwen2", "classify", 3, hf.Qwen2ForSequenceClassification),
]


@pytest.mark.parametrize(("kind", "head", "labels", "cls"), HEADS)
@torch.no_grad()
def test_heads_equal_transformers(kind, head, labels, cls):
    model = reference(kind, cls, num_labels=labels, pad_token_id=0)
    net = ours(kind, model, {head: labels})
    ids = sample(2, 60)
    if head == "choose":
        want = model(ids[None]).logits[0, :, None]
    else:
        out = model(ids)
        want = torch.stack([out.start_logits, out.end_logits], -1) if head == "spans" else out.logits
    hidden = net.hidden(ids)
    states = hidden if head in ("tag", "spans") else hidden[:, -1 if net.pool == "last" else 0]
    assert gap(net.heads[head](states), want) < FLOOR


def _swap(block: Block) -> None:
    block.__class__ = PostNorm if isinstance(block, PreNorm) else PreNorm


def _late(net) -> None:
    enter = net.enter
    net.enter = lambda ids, mask=None, *rest: enter(
        ids, mask, rest[0], rest[1], rest[2], torch.arange(1, ids.shape[1] + 1)[None], *rest[4:]
    )


def _each(kind: type, change):
    return lambda net: [change(part) for part in net.modules() if isinstance(part, kind)]


def _see_one_more(part: Attention) -> None:
    plain = part.attend
    part.attend = lambda q, k, v, mask, *rest: plain(
        q, k, v, type(mask)(allow=torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(1)[None, None]), *rest
    )


def _same(arch) -> dict:
    return {}


# name: (changes of the architecture, change of the built net, kinds it applies to)
MUTANTS = {
    "eps ten times larger": (lambda a: {"eps": a.eps * 10}, None, KINDS),
    "another gelu": (lambda a: {"act": {"gelu": "gelu_tanh", "gelu_tanh": "gelu", "silu": "gelu"}[a.act]}, None, KINDS),
    "rotary base": (lambda a: {"theta": a.theta * 1.001}, None, ("llama", "llama_wide", "mistral", "qwen2")),
    "window one wider": (lambda a: {"windows": tuple(w and w + 1 for w in a.windows)}, None, ("mistral", "qwen2_window")),
    "window one narrower": (lambda a: {"windows": tuple(w and w - 1 for w in a.windows)}, None, ("mistral", "qwen2_window")),
    "window in the first layer too": (lambda a: {"windows": (24,) * a.layers}, None, ("qwen2_window",)),
    "attention scale": (_same, _each(Attention, lambda m: setattr(m, "scale", 0.36)), KINDS),
    "norm place": (_same, lambda net: [_swap(block) for block in net.blocks], KINDS),
    "no final norm": (_same, lambda net: setattr(net, "norm", nn.Identity()), [k for k in KINDS if k != "bert"]),
    "no embedding norm": (_same, lambda net: setattr(net.embed, "norm", nn.Identity()), ("bert",)),
    "positions one late": (_same, _late, ("gpt2", "bert")),
    "not causal": (_same, lambda net: setattr(net, "causal", False), [k for k in KINDS if k != "bert"]),
    "sees one token ahead": (_same, _each(Attention, _see_one_more), ("llama", "qwen2", "gpt2")),
    "segments forgotten": (_same, lambda net: setattr(net.embed, "types", None), ("bert",)),
    "keys and values swapped between groups": (_same, _each(Attention, lambda m: m.v.weight.data.copy_(m.v.weight.flip(0))), KINDS),
    "head without its transform": (_same, lambda net: setattr(net.heads["lm"], "transform", nn.Identity()), ("bert",)),
    "head tied": (_same, lambda net: setattr(net.heads["lm"].out, "weight", net.embed.token.weight), ("llama", "mistral", "qwen2")),
}


@pytest.mark.parametrize(("mutant", "kind"), [(m, k) for m, (_, _, where) in MUTANTS.items() for k in where])
@torch.no_grad()
def test_the_parity_test_catches(mutant, kind):
    change, alter, _ = MUTANTS[mutant]
    model = reference(kind)
    net = ours(kind, model, **change(ours(kind, model).config))
    if alter is not None:
        alter(net)
    assert gap(net(sample()), model(sample()).logits) > 10 * FLOOR


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_dropout_falls_where_transformers_lets_it_fall(kind, monkeypatch):
    rates = {"llama": {"attention_dropout": 0.3}, "gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.2, "attn_pdrop": 0.3}}
    rates["bert"] = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.3}
    seen: list[tuple[float, tuple[int, ...]]] = []
    drop, attend = nn.functional.dropout, nn.functional.scaled_dot_product_attention

    def record(x, p=0.5, training=True, inplace=False):
        seen.extend([(p, tuple(x.shape))] if training and p else [])
        return drop(x, p, training, inplace)

    def record_attention(q, k, v, mask=None, p=0.0, causal=False, dropout_p=0.0, is_causal=False, **rest):
        seen.append((p or dropout_p, ("attention",)))
        return attend(q, k, v, rest.pop("attn_mask", mask), 0.0, causal or is_causal, **rest)

    monkeypatch.setattr(nn.functional, "dropout", record)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", record_attention)
    model = reference(kind, **rates[kind]).train()
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
    assert torch.equal(outs[0], outs[2]) == (kind not in ("gpt2", "bert"))
