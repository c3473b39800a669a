"""Transformer-XL over four segments equals transformers 4.57.6 (fixtures/transformer_xl.py); memory, softmax and padding by themselves."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from luthier.core.adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from luthier.core.cache import Cache
from luthier.core.generate import generate_ids
from luthier.core.names import import_state
from luthier.core.reader import Sampling
from luthier.core.relative import RelativeAttention, shift
from luthier.models.transformer_xl import TransformerXL
from luthier.objectives._batch import Batch
from luthier.objectives._language import token_loss
from luthier.sources.load import load_model
from luthier.sources.model import Model
from luthier.tuning._read import load_adapter
from luthier.tuning._tune import tune

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = {"model_type": "transfo-xl", "vocab_size": 40, "d_model": 12, "n_layer": 2, "n_head": 2, "d_head": 6, "d_inner": 16}
CASES = {
    "divided": {"cutoffs": [10, 18, 30], "d_embed": 12, "div_val": 2, "mem_len": 11, "clamp_len": 9, "same_length": True},
    "plain": {
        "cutoffs": [10, 25], "d_embed": 8, "div_val": 1, "mem_len": 9, "clamp_len": -1, "same_length": False, "pre_lnorm": True,
        "untie_r": False,
    },
}  # fmt: skip
SEGMENTS = (7, 7, 4, 10)
cases = pytest.mark.parametrize("case", CASES)


def loaded(case: str, **changes):
    stored = {
        name: t.double() if t.is_floating_point() else t for name, t in load_file(FIXTURES / f"transformer_xl_{case}.safetensors").items()
    }
    ids, logits = stored.pop("ids"), stored.pop("logits")
    arch = replace(TransformerXL.from_config(SMALL | CASES[case]), **changes)
    known = {arch.aliases(name): tensor for name, tensor in stored.items()}
    net = arch.build().double()
    names = arch.names({"lm": 40})
    assert set(known) - {None} == {name.path for name in names.values()}
    missing, unexpected = net.load_state_dict(import_state(names, known), strict=False)
    assert not unexpected and all(".out.tables." in name or ".out.projects." in name for name in missing)
    return net.eval(), ids, logits


def by_segments(net, ids):
    cache = Cache(2)
    return torch.cat([net(part, cache=cache) for part in ids.split(SEGMENTS, 1)], 1)


def gap(a, b) -> float:
    return ((a - b).abs().max() / b.abs().mean()).item()


@cases
def test_four_segments_equal_transformers(case):
    net, ids, logits = loaded(case)
    with torch.no_grad():
        assert gap(by_segments(net, ids), logits) < 1e-6  # the fixture is float32
    assert gap(by_segments(net, ids), logits) < 1e-6  # with states in memory instead of keys


MUTANTS = {
    "no memory": (lambda a: {"memory": 0}, None),
    "memory one shorter": (lambda a: {"memory": a.memory - 1}, None),
    "clamped": (lambda a: {"clamp": 5}, None),
    "looks back another length": (lambda a: {"same": not a.same}, None),
    "norm place": (lambda a: {"pre": not a.pre}, None),
    "eps": (lambda a: {"eps": a.eps * 10}, None),
    "parts from the last": (lambda a: {"backwards": True}, None),
    "no scale of embeddings": (lambda a: {}, lambda net: setattr(net.embed, "scale", 1.0)),
    "u and v swapped": (lambda a: {}, lambda net: [swap(part) for part in net.modules() if isinstance(part, RelativeAttention)]),
}


def swap(part: RelativeAttention) -> None:
    part.content, part.distance = part.distance, part.content


@cases
@pytest.mark.parametrize("mutant", MUTANTS)
@torch.no_grad()
def test_the_parity_test_catches(mutant, case):
    change, alter = MUTANTS[mutant]
    net, ids, logits = loaded(case, **change(loaded(case)[0].config))
    if alter is not None:
        alter(net)
    assert gap(by_segments(net, ids), logits) > 1e-5


def test_shifting_gives_each_key_the_score_of_its_distance():
    for queries, keys in ((1, 1), (1, 4), (3, 3), (3, 5)):
        distance = torch.arange(keys - 1, -queries - 1, -1).expand(1, 1, queries, -1)
        want = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
        assert torch.equal(shift(distance, keys)[0, 0], want)


def test_no_gradient_goes_into_the_memory_and_the_weights_get_theirs_from_it():
    net, ids, _ = loaded("divided")
    cache = Cache(2)
    first = net.hidden(ids[:, :7], cache=cache)
    second = net.hidden(ids[:, 7:14], cache=cache)
    (into,) = torch.autograd.grad(second.sum(), [first], allow_unused=True, retain_graph=True)
    assert into is None and all(not states.requires_grad and states.shape[1] == 11 for states in cache.recalled.values())
    (grad,) = torch.autograd.grad(second.square().sum(), [net.blocks[1].attn.k.weight])
    assert grad.abs().max() > 0


@cases
@torch.no_grad()
def test_one_segment_equals_token_by_token_within_the_memory(case):
    net, ids, _ = loaded(case, memory=40, same=False)
    cache = Cache(2)
    steps = torch.cat([net(part, cache=cache) for part in ids.split(1, 1)], 1)
    assert gap(steps, net(ids)) < 1e-12


@torch.no_grad()
def test_padding_and_packing_change_nothing():
    net, ids, _ = loaded("divided")
    parts = ids[:, :20].split((5, 1, 14), 1)
    alone = torch.cat([net.hidden(part[:1]) for part in parts], 1)
    assert gap(net.hidden(ids[:1, :20], lengths=(5, 1, 14)), alone) < 1e-12
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[0, :6] = False
    assert gap(net.hidden(ids[:, :20], mask)[0, 6:], net.hidden(ids[:1, 6:20])[0]) < 1e-12


@torch.no_grad()
def test_it_writes_on_and_batches_equal_single_prompts():
    net, ids, _ = loaded("divided")
    prompts, sampling = [ids[0, :9].tolist(), ids[1, :4].tolist()], Sampling(max_tokens=12, temperature=0)
    rows = generate_ids(net, prompts, sampling)
    assert rows == [generate_ids(net, [prompt], sampling)[0] for prompt in prompts]
    written, cache = [], Cache(2)
    scores = net(ids[:1, :9], cache=cache)[0, -1]
    for _ in range(12):
        written.append(int(scores.argmax()))
        scores = net(torch.tensor([written[-1:]]), cache=cache)[0, -1]
    assert rows[0] == written
    assert len(generate_ids(net, prompts, Sampling(max_tokens=5, beams=3, samples=2))) == 4


@pytest.mark.parametrize(("divide", "vectors"), [(1, 8), (1, 6), (2, 8)])
@pytest.mark.parametrize("backwards", [False, True])
def test_the_softmax_is_the_product_of_its_two_choices(divide, vectors, backwards):
    """By hand, and as torch's own of the same weights, which has the parts from the first to the last."""
    torch.manual_seed(0)
    cuts, width, vocab = [6, 10, 15], 8, 21
    embed = AdaptiveEmbedding(vocab, width, vectors, cuts, divide).double()
    softmax = AdaptiveSoftmax(embed, cuts, share=False, backwards=backwards).double()
    for p in softmax.parameters():
        nn.init.normal_(p)
    state, labels = torch.randn(30, width, dtype=torch.float64, requires_grad=True), torch.arange(30) % vocab
    log = softmax(state)
    torch.testing.assert_close(log.exp().sum(-1), torch.ones(30, dtype=torch.float64))
    want = -log.gather(1, labels[:, None]).sum()
    torch.testing.assert_close(softmax.loss(state, labels), want)
    ours, theirs = (torch.autograd.grad(loss, [state, *softmax.parameters()]) for loss in (softmax.loss(state, labels), want))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    turned = AdaptiveSoftmax(embed, cuts, share=False, backwards=not backwards).double()
    turned.load_state_dict(softmax.state_dict() | {f"clusters.{name}": p.flip(0) for name, p in softmax.clusters.named_parameters()})
    torch.testing.assert_close(turned(state), log)
    if divide == 1 and vectors == width and not backwards:
        torchs = nn.AdaptiveLogSoftmaxWithLoss(width, vocab, cuts, div_value=1.0, head_bias=True).double()
        (table,) = softmax.tables
        with torch.no_grad():
            torchs.head.weight.copy_(torch.cat([table.weight[:6], softmax.clusters.weight]))
            torchs.head.bias.copy_(torch.cat([table.bias[:6], softmax.clusters.bias]))
            for tail, (start, stop) in zip(torchs.tail, ((6, 10), (10, 15), (15, 21)), strict=True):
                table.bias[start:stop] = 0.0  # torch's parts have none
                tail[0].weight.copy_(torch.eye(width))
                tail[1].weight.copy_(table.weight[start:stop])
        torch.testing.assert_close(torchs.log_prob(state), softmax(state))


def test_a_folder_is_saved_and_read_again(tmp_path):
    net, ids, _ = loaded("divided")
    Model(net, source="xl").save(tmp_path / "xl")
    again = load_model(tmp_path / "xl", "float64")
    assert again.net.config == net.config
    with torch.no_grad():
        assert torch.equal(by_segments(again.net, ids), by_segments(net, ids))


def test_adapters_go_on_it_and_objectives_read_its_softmax():
    net, ids, _ = loaded("divided")
    model = Model(net, source="xl")
    want = -net(ids[:1]).log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).sum()
    attached = tune(model, "lora", roles=["q", "v", "up"], rank=2)
    batch = Batch(ids[:1], (28,), {"lm": torch.arange(27)}, {"lm": ids[0, 1:]})
    term = token_loss(net.hidden(ids[:1]), net.heads, batch, "lm")
    torch.testing.assert_close(term.sum, want)
    term.sum.backward()
    assert all(p.grad is not None for p in attached.parameters.values())


COUNTS = {"transfo-xl-wt103": 285_205_322, "transfo-xl-wt103-base": 151_119_838}


@pytest.mark.parametrize("preset", COUNTS)
def test_presets_have_the_published_number_of_parameters(preset):
    with torch.device("meta"):
        net = TransformerXL(**TransformerXL.presets[preset]).build()
    assert sum(p.numel() for p in net.parameters()) == COUNTS[preset]


def test_what_is_not_here_is_refused():
    with pytest.raises(ValueError, match="attn_type=2"):
        TransformerXL.from_config(SMALL | CASES["divided"] | {"attn_type": 2})
    with pytest.raises(ValueError, match="must rise"):
        TransformerXL(vocab=40, cuts=(20, 10))
    with pytest.raises(ValueError, match="takes no positions"):
        loaded("divided")[0].hidden(torch.ones(1, 3, dtype=torch.long), positions=torch.ones(1, 3))


def test_an_adapter_is_saved_and_read_over_an_adaptive_embedding(tmp_path):
    ids = torch.arange(12)[None]
    model = Model(loaded("divided")[0])
    attached = tune(model, "lora", rank=2)
    with torch.no_grad():
        for parameter in attached.parameters.values():
            parameter.add_(0.1)
    attached.save(tmp_path)
    again = Model(loaded("divided")[0])
    load_adapter(again, tmp_path)
    with torch.no_grad():
        assert torch.equal(again.hidden(ids), model.hidden(ids))
