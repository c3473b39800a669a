"""UniLM's four masks: enumerated by hand, against BERT with the same masks in transformers, padded and packed."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from oracles import FLOOR, gap, ours, reference, sample

from luthier.core.visibility import rows, visible
from luthier.models.unilm import UniLM

KINDS = ("bidirectional", "left_to_right", "right_to_left", "sequence_to_sequence")
HAND = {  # figure 1 of the paper, five tokens of which two are the source; a row is a query
    "bidirectional": ["11111", "11111", "11111", "11111", "11111"],
    "left_to_right": ["10000", "11000", "11100", "11110", "11111"],
    "right_to_left": ["11111", "01111", "00111", "00011", "00001"],
    "sequence_to_sequence": ["11000", "11000", "11100", "11110", "11111"],
}


def matrix(lines: list[str]) -> torch.Tensor:
    return torch.tensor([[int(seen) for seen in line] for line in lines]).bool()


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_the_papers(kind):
    assert torch.equal(visible([kind], torch.ones(1, 5).bool(), [2])[0, 0], matrix(HAND[kind]))


@pytest.mark.parametrize(("left", "right"), [(0, 0), (0, 3), (2, 0), (2, 1)])
def test_padding_on_either_side_sees_nothing_and_is_not_seen(left, right):
    real = torch.tensor([[False] * left + [True] * 5 + [False] * right] * 4)
    allow = visible(KINDS, real, [2] * 4)
    for row, kind in enumerate(KINDS):
        assert torch.equal(allow[row, 0, left : left + 5, left : left + 5], matrix(HAND[kind]))
    assert int(allow.sum()) == sum(int(matrix(HAND[kind]).sum()) for kind in KINDS)


def test_a_source_may_be_the_whole_text_or_nothing_of_it():
    real = torch.ones(2, 4).bool()
    allow = visible(["sequence_to_sequence"] * 2, real, [4, 0])[:, 0]
    assert allow[0].all() and torch.equal(allow[1], torch.ones(4, 4).tril().bool())


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One row of each kind, of other lengths, with their segments: ids, real, types, allow."""
    ids, lengths = sample(4, 200), (200, 150, 90, 180)
    real = rows(lengths)
    sources, types = [80] * 4, torch.zeros(4, 200, dtype=torch.long)
    for row, kind in enumerate(KINDS):
        first, second = UniLM.kinds[kind]
        types[row] = torch.where(torch.arange(200) < 80, first, second)
    return ids, real, types, visible(KINDS, real, sources)


@torch.no_grad()
def test_every_kind_gives_the_logits_of_transformers_bert_with_that_mask():
    ids, real, types, allow = batch()
    model = reference("unilm")
    seen = allow | ~real[:, None, :, None]  # a row of padding must see something there
    additive = torch.where(seen, 0.0, torch.finfo(torch.float64).min)
    want = model(ids, token_type_ids=types, attention_mask=additive).logits
    assert gap(ours("unilm", model)(ids, allow=allow, types=types)[real], want[real]) < FLOOR


@torch.no_grad()
def test_packed_documents_of_several_kinds_equal_the_same_alone():
    ids, real, types, allow = batch()
    net = ours("unilm", reference("unilm"))
    alone = net(ids, allow=allow, types=types)[real]
    lengths = tuple(real.sum(1).tolist())
    packed = net(ids[real][None], lengths=lengths, types=types[real][None], allow=visible(KINDS, rows(lengths), [80] * 4))
    assert gap(packed[0], alone) < FLOOR


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_exactly_the_tokens_that_are_seen_matter(kind):
    """The leakage matrix: token j of 9 changes what comes out at i if, and only if, the mask says that i sees j."""
    net = ours("unilm", reference("unilm"))
    net.order = (0,)  # of one layer: two would pass on what another token has seen
    ids, allow = sample(1, 9), visible([kind], torch.ones(1, 9).bool(), [4])
    before = net(ids, allow=allow)[0]
    for j in range(9):
        changed = ids.clone()
        changed[0, j] = (changed[0, j] - 3 + 11) % 57 + 3
        after = net(changed, allow=allow)[0]
        assert torch.equal((before != after).any(-1), allow[0, 0, :, j] | (torch.arange(9) == j))


@torch.no_grad()
def test_a_source_does_not_depend_on_its_target_through_all_layers():
    net = ours("unilm", reference("unilm"))
    ids, allow = sample(1, 20), visible(["sequence_to_sequence"], torch.ones(1, 20).bool(), [8])
    changed = torch.cat([ids[:, :8], sample(1, 12, seed=4)], 1)
    assert torch.equal(net(ids, allow=allow)[:, :8], net(changed, allow=allow)[:, :8])


def wrong(change):
    def altered(kinds, real, sources):
        allow = visible(kinds, real, sources)
        return change(allow, kinds, real, sources)

    return altered


MUTANTS = {
    "the source one token longer": lambda kinds, real, sources: visible(kinds, real, [n + 1 for n in sources]),
    "the source sees its target": wrong(
        lambda allow, kinds, real, sources: allow | real[:, None, None, :] & (torch.arange(200) < 80)[:, None]
    ),
    "left and right swapped": wrong(lambda allow, kinds, real, sources: allow.mT),
    "one token ahead": wrong(lambda allow, kinds, real, sources: allow | allow.roll(1, -1)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@torch.no_grad()
def test_the_parity_test_catches(mutant):
    ids, real, types, allow = batch()
    net = ours("unilm", reference("unilm"))
    spoilt = net(ids, allow=MUTANTS[mutant](KINDS, real, [80] * 4), types=types)
    assert gap(spoilt[real], net(ids, allow=allow, types=types)[real]) > 10 * FLOOR


def test_what_does_not_fit_is_refused():
    real = torch.ones(2, 5).bool()
    with pytest.raises(ValueError, match="1 kinds of masks for 2 rows"):
        visible(["bidirectional"], real)
    with pytest.raises(ValueError, match="no mask called 'sideways'"):
        visible(["sideways", "bidirectional"], real)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"sources=\[...\]"):
        visible(["sequence_to_sequence", "bidirectional"], real)


def test_sizes_are_those_of_bert_cased_with_six_segments():
    for preset, bert in (("unilm-base-cased", 108_310_272 + 4 * 768), ("unilm-large-cased", 333_579_264 + 4 * 1024)):
        with torch.device("meta"):
            net = UniLM(**UniLM.presets[preset], lm=False).build()
        assert sum(p.numel() for p in net.parameters()) == bert
    assert {segment for pair in UniLM.kinds.values() for segment in pair} == set(range(6))
