"""Keys and values that stand before all others: the softmax over both, by hand."""

import pytest
import torch

from luthier.core.attention import Mask, attend

H, G, P, K = 4, 2, 3, 8


def heads(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def by_hand(q, k, v, allow, bias, pk, pv):
    """softmax over [prefix, keys], one row at a time; the prefix always seen, its bias 0."""
    k, v = torch.cat([pk, k], 1), torch.cat([pv, v], 1)
    k, v = k.repeat_interleave(H // G, 0), v.repeat_interleave(H // G, 0)
    scores = q @ k.mT / K**0.5
    scores[..., P:] = scores[..., P:].masked_fill(~allow, float("-inf")) + (0 if bias is None else bias)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [(7,), (3, 4), (1, 2, 4)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_prefix_is_seen_by_every_query_of_every_document(causal: bool, lengths: tuple[int, ...], biased: bool):
    q, k, v = heads(1, H, 7, K, seed=0), heads(1, G, 7, K, seed=1), heads(1, G, 7, K, seed=2)
    pk, pv = heads(G, P, K, seed=3), heads(G, P, K, seed=4)
    longest = max(lengths)
    bias = heads(1, H, longest, longest, seed=5).detach() if biased else None
    got = attend(q, k, v, Mask(causal, lengths=lengths), bias, prefix=(pk, pv))
    parts, start = [], 0
    for n in lengths:
        at = slice(start, start + n)
        allow = torch.ones(n, n).tril().bool() if causal else torch.ones(n, n, dtype=torch.bool)
        mine = None if bias is None else bias[0, :, :n, :n]
        parts.append(by_hand(q[0, :, at], k[0, :, at], v[0, :, at], allow, mine, pk, pv))
        start += n
    want = torch.cat(parts, 1)[None]
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(want)
    for mine, right in zip(
        torch.autograd.grad((got * weight).sum(), (q, k, v, pk, pv)),
        torch.autograd.grad((want * weight).sum(), (q, k, v, pk, pv)),
        strict=True,
    ):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("window", [None, 2])
def test_a_prefix_is_outside_windows_padding_and_causality(window: int | None):
    q, k, v = heads(2, H, 5, K, seed=0), heads(2, G, 6, K, seed=1), heads(2, G, 6, K, seed=2)
    pk, pv = heads(G, P, K, seed=3), heads(G, P, K, seed=4)
    real = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    mask = Mask(True, window, keys=real)
    got = attend(q, k, v, mask, prefix=(pk, pv))
    i, j = torch.arange(1, 6)[:, None], torch.arange(6)[None]
    near = (j <= i) & (j > i - (window or 99))
    for b in range(2):
        torch.testing.assert_close(got[b], by_hand(q[b], k[b], v[b], near & real[b], None, pk, pv))
