"""Filling in masks: the surest first, block after block, what guidance and temperature do; by nets whose scores are known."""

import pytest
import torch
from torch import Tensor, nn

from luthier.core.transformer import Net
from luthier.core.unmask import Unmasking, shares, unmask_ids

MASK, VOCAB = 9, 10


class Known(Net):
    """Scores by place from a table, whatever the input; what it was asked is kept."""

    def __init__(self, table_TV: Tensor, causal: bool = False):
        super().__init__()
        self.table, self.causal, self.seen = nn.Parameter(table_TV), causal, []
        self.width = self.vocab = table_TV.shape[1]

    def add_head(self, kind: str, labels: int) -> None:
        raise NotImplementedError

    def hidden(self, ids: Tensor, mask: Tensor | None = None, **inputs) -> Tensor:  # type: ignore[override]
        self.seen.append(ids.clone())
        return self.table[None, : ids.shape[1]].expand(len(ids), -1, -1).clone()

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def table(tokens: list[int], sure: list[float]) -> Tensor:
    """(T, V): each place's token, and how far it is ahead; the mask itself always looks best."""
    scores = torch.zeros(len(tokens), VOCAB)
    scores[range(len(tokens)), tokens] = torch.tensor(sure)
    scores[:, MASK] = 100.0
    return scores


def order(net: Known) -> list[list[int]]:
    """Which places were filled in before each step."""
    return [(ids[0] != MASK).nonzero()[:, 0].tolist() for ids in net.seen]


def test_the_surest_are_kept_first():
    net = Known(table([1, 2, 3, 4], [5.0, 1.0, 9.0, 3.0]))
    assert unmask_ids(net, [[]], MASK, Unmasking(max_tokens=4, block=4, steps=4)) == [[1, 2, 3, 4]]
    assert order(net) == [[], [2], [0, 2], [0, 2, 3]]


def test_blocks_are_finished_from_left_to_right_and_the_prompt_stays():
    net = Known(table([0, 0, 1, 2, 3, 4, 5], [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))
    assert unmask_ids(net, [[7, 8]], MASK, Unmasking(max_tokens=5, block=2, steps=4)) == [[1, 2, 3, 4, 5]]
    assert order(net) == [[0, 1], [0, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]  # 2 + 1 + 1 steps


def test_steps_are_shared_out_evenly_and_larger_parts_come_first():
    assert shares(7, 3) == [3, 2, 2]
    assert shares(2, 4) == [1, 1, 0, 0]


def test_prompts_of_several_lengths_stand_at_the_right():
    net = Known(table([0, 0, 0, 1, 2], [0.0, 0.0, 0.0, 1.0, 2.0]))
    assert unmask_ids(net, [[3], [4, 5, 6]], MASK, Unmasking(max_tokens=2, block=2, steps=1)) == [[1, 2], [1, 2]]
    assert net.seen[0][:, :3].tolist() == [[0, 0, 3], [4, 5, 6]]


def test_a_temperature_draws_from_the_softmax():
    net = Known(torch.log(torch.tensor([[0.6, 0.3, 0.1, 1e-9, 5.0]])))
    how = Unmasking(max_tokens=1, block=1, steps=1, temperature=1.0)
    drawn = unmask_ids(net, [[]] * 6000, 4, how, torch.Generator().manual_seed(0))
    share = torch.bincount(torch.tensor(drawn)[:, 0], minlength=4)[:3] / 6000
    torch.testing.assert_close(share, torch.tensor([0.6, 0.3, 0.1]), atol=0.02, rtol=0)


def test_random_keeping_takes_any_order_and_a_seed_repeats_it():
    how = Unmasking(max_tokens=6, block=6, steps=6, remasking="random")
    orders = []
    for seed in (0, 0, 1, 2):
        net = Known(table([1] * 6, [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]))
        unmask_ids(net, [[]], MASK, how, torch.Generator().manual_seed(seed))
        orders.append(order(net))
    assert orders[0] == orders[1] and len({str(each) for each in orders}) > 1


class Asked(Known):
    """Prefers 1 where the prompt is seen and slightly prefers 2 anyway."""

    def hidden(self, ids: Tensor, mask: Tensor | None = None, **inputs) -> Tensor:  # type: ignore[override]
        out = torch.zeros(*ids.shape, VOCAB)
        out[..., 2], out[..., 1] = 1.0, 0.8 * (ids[:, :1] == 5)
        return out


def test_guidance_moves_away_from_the_answer_without_the_prompt():
    net = Asked(torch.zeros(3, VOCAB))
    assert unmask_ids(net, [[5]], MASK, Unmasking(max_tokens=2, block=2, steps=1)) == [[2, 2]]
    assert unmask_ids(net, [[5]], MASK, Unmasking(max_tokens=2, block=2, steps=1, guidance=0.5)) == [[1, 1]]  # 1.2 against 1.0


def test_impossible_settings_and_causal_models_are_refused():
    with pytest.raises(ValueError, match="max_tokens=9 in blocks of 4 need steps >= 3"):
        Unmasking(max_tokens=9, block=4, steps=2)
    with pytest.raises(ValueError, match="must not be negative"):
        Unmasking(guidance=-1)
    with pytest.raises(ValueError, match="sees no later token"):
        unmask_ids(Known(torch.zeros(3, VOCAB), causal=True), [[1]], MASK)
