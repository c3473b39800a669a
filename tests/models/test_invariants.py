"""What must hold of every net: packing does not leak, batch equals single, cache and padding change nothing, sizes are the published ones."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from oracles import DECODERS, KINDS, gap, ours, reference, sample

from luthier.core.cache import Cache
from luthier.models.bert import BERT
from luthier.models.gpt2 import GPT2
from luthier.models.llama import Llama

kinds = pytest.mark.parametrize("kind", KINDS)
decoders = pytest.mark.parametrize("kind", DECODERS)
LENGTHS = (30, 1, 57, 112)


@kinds
@torch.no_grad()
def test_a_packed_document_does_not_notice_the_others_to_the_bit(kind):
    net = ours(kind, reference(kind))
    ids = sample(1, 200)
    changed = ids.clone()
    changed[0, :30] = sample(1, 30, seed=5)[0]
    before, after = net(ids, lengths=LENGTHS), net(changed, lengths=LENGTHS)
    assert torch.equal(before[:, 30:], after[:, 30:]) and not torch.equal(before[:, :30], after[:, :30])


@kinds
@torch.no_grad()
def test_packed_equals_alone(kind):
    net = ours(kind, reference(kind))
    ids = sample(1, 200)
    alone = torch.cat([net(part) for part in ids.split(LENGTHS, 1)], 1)
    assert gap(net(ids, lengths=LENGTHS), alone) < 1e-12


@kinds
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(kind):
    net = ours(kind, reference(kind))
    ids = sample(1, 40)
    want = net(ids)
    for left in (0, 9):
        padded = torch.zeros(1, 49, dtype=torch.long)
        mask = torch.zeros(1, 49, dtype=torch.bool)
        padded[:, left : left + 40], mask[:, left : left + 40] = ids, True
        batch, real = torch.cat([padded, sample(1, 49)]), torch.cat([mask, torch.ones(1, 49, dtype=torch.bool)])
        assert gap(net(batch, real)[:1][mask], want[0]) < 1e-12


@decoders
@torch.no_grad()
def test_cached_steps_equal_one_pass(kind):
    net = ours(kind, reference(kind))
    ids = sample(2, 60)
    cache = Cache(3)
    steps = [net(part, cache=cache) for part in ids.split((20, 1, 1, 30, 8), 1)]
    assert gap(torch.cat(steps, 1), net(ids)) < 1e-12


@decoders
@torch.no_grad()
def test_no_logit_knows_a_later_token(kind):
    net = ours(kind, reference(kind))
    ids = sample(1, 50)
    changed = ids.clone()
    changed[0, 30] = (changed[0, 30] + 1) % 57 + 3
    before, after = net(ids), net(changed)
    assert torch.equal(before[:, :30], after[:, :30]) and not torch.equal(before[:, 30], after[:, 30])


@kinds
def test_recomputation_gives_the_same_gradients(kind):
    net = ours(kind, reference(kind))
    grads = []
    for recompute in (False, True):
        net.recompute = recompute
        net.zero_grad()
        net(sample(1, 60), lengths=(20, 40)).square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@kinds
@torch.no_grad()
def test_fused_frozen_projections_change_nothing(kind):
    net = ours(kind, reference(kind))
    want = net(sample())
    net.requires_grad_(False).fuse()
    assert gap(net(sample()), want) < 1e-12


@kinds
@torch.no_grad()
def test_bfloat16_stays_near(kind):
    net = ours(kind, reference(kind))
    want = net(sample())
    got = net.bfloat16()(sample())
    assert got.dtype == torch.bfloat16
    assert ((got.double() - want).abs().mean() / want.abs().mean()).item() < 0.05


@torch.no_grad()
def test_states_are_each_layers_output_and_end_in_hidden():
    net = ours("bert", reference("bert"))
    states = net.states(sample())
    assert len(states) == 4 and torch.equal(states[-1], net.hidden(sample()))
    want = reference("bert").bert(sample(), output_hidden_states=True).hidden_states
    assert all(gap(a, b) < 1e-12 for a, b in zip(states, want, strict=True))


@torch.no_grad()
def test_one_shared_block_is_that_block_repeated():
    net = ours("bert", reference("bert"))
    net.order = (1, 1, 1, 1)
    repeated = ours("bert", reference("bert"))
    repeated.blocks[0] = repeated.blocks[2] = repeated.blocks[1]
    repeated.order = (0, 1, 2, 0)
    assert torch.equal(net(sample()), repeated(sample()))


def test_beyond_the_position_table_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="221 tokens is beyond the model's 220 positions"):
        ours("gpt2", reference("gpt2"))(sample(1, 221))


def test_packed_lengths_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="packed documents of 9 tokens"):
        ours("llama", reference("llama"))(sample(1, 10), lengths=(4, 5))


COUNTS = {
    (Llama, "smollm2-135m"): 134_515_008,
    (Llama, "qwen2-0.5b"): 494_032_768,
    (Llama, "qwen2-7b"): 7_615_616_512,
    (Llama, "llama-7b"): 6_738_415_616,
    (GPT2, "gpt2"): 124_439_808,
    (GPT2, "gpt2-medium"): 354_823_168,
    (GPT2, "gpt2-large"): 774_030_080,
    (GPT2, "gpt2-xl"): 1_557_611_200,
    (BERT, "bert-base-uncased"): 109_482_240 + 592_128 + 30_522,
    (BERT, "bert-large-uncased"): 335_141_888 + 1_051_648 + 30_522,
    (BERT, "minilm-l6"): 22_713_216,
}


@pytest.mark.parametrize(("arch", "preset"), COUNTS)
def test_presets_have_the_published_number_of_parameters(arch, preset):
    with torch.device("meta"):
        net = arch(**arch.presets[preset]).build()
    assert sum(p.numel() for p in net.parameters()) == COUNTS[arch, preset]


@kinds
def test_a_configuration_survives_being_written(kind):
    arch = ours(kind, reference(kind)).config
    again = type(arch).from_config(arch.to_config())
    assert again.to_config() == arch.to_config()


def test_what_a_configuration_asks_for_and_we_lack_is_refused_by_name():
    base = reference("llama").config.to_dict()
    with pytest.raises(ValueError, match="rotary scaling 'proportional'"):
        Llama.from_config(base | {"rope_parameters": {"rope_type": "proportional", "factor": 4.0, "rope_theta": 1e4}})
    with pytest.raises(ValueError, match="hidden_act='mish'"):
        Llama.from_config(base | {"hidden_act": "mish"})
    with pytest.raises(ValueError, match="lacks 'hidden_size'"):
        Llama.from_config({key: value for key, value in base.items() if key != "hidden_size"})


@pytest.mark.parametrize(
    ("arch", "sizes", "sentence"),
    [
        (Llama, {"width": 31, "heads": 2, "kv_heads": 2}, "width=31 must divide by heads=2"),
        (Llama, {"width": 48, "heads": 4, "kv_heads": 3}, "heads=4 must divide by kv_heads=3"),
        (Llama, {"width": 36, "heads": 4, "kv_heads": 4}, "9 dimensions is odd"),
        (GPT2, {"width": 30, "heads": 4}, "width=30 must divide"),
        (BERT, {"width": 30, "heads": 4}, "width=30 must divide"),
    ],
)
def test_sizes_that_no_attention_fits_are_refused(arch, sizes, sentence):
    with pytest.raises(ValueError, match=sentence):
        arch(**sizes)
