"""The sampled softmax: TensorFlow's log-uniform sampler and loss written again in numpy, and what both are expected to be."""

import numpy as np
import pytest
import torch

from luthier.core.sampled import expected, log_uniform, sampled_cross_entropy

VOCAB = 60


def by_hand(samples: int, vocab: int, seed: int) -> tuple[list[int], int]:
    """One draw after the other, as log_uniform_candidate_sampler does with unique=True."""
    generator, words, draws = torch.Generator().manual_seed(seed), [], 0
    while len(words) < samples:
        for share in torch.rand(2 * samples, dtype=torch.float64, generator=generator).tolist():
            word = int(np.exp(share * np.log1p(vocab))) - 1
            draws += 1
            words += [] if word in words else [word]
            if len(words) == samples:
                break
    return words, draws


def expected_by_hand(word: int, draws: int, vocab: int) -> float:
    return 1 - (1 - np.log((word + 2) / (word + 1)) / np.log1p(vocab)) ** draws


@pytest.mark.parametrize("samples", [1, 8, 30])
def test_words_and_draws_are_those_of_drawing_one_by_one(samples: int):
    for seed in range(20):
        torch.manual_seed(seed)
        words, draws = log_uniform(samples, VOCAB)
        assert (words.tolist(), draws) == by_hand(samples, VOCAB, seed)


def test_a_word_is_in_a_sample_as_often_as_expected():
    torch.manual_seed(0)
    seen, wanted = torch.zeros(VOCAB, dtype=torch.float64), torch.zeros(VOCAB, dtype=torch.float64)
    for _ in range(4000):
        words, draws = log_uniform(12, VOCAB)
        assert len(set(words.tolist())) == 12
        seen[words] += 1 / 4000
        wanted += expected(torch.arange(VOCAB), draws, VOCAB) / 4000
    assert (seen - wanted).abs().max() < 0.03  # three standard errors; the formula takes the number of draws for given
    assert seen[0] > 0.7 > 0.1 > seen[-1]


@pytest.mark.parametrize("biased", [False, True])
def test_the_loss_is_tensorflows_formula(biased: bool):
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, 5, dtype=torch.float64, generator=generator) for n in (7, VOCAB))
    bias = torch.randn(VOCAB, dtype=torch.float64, generator=generator) if biased else None
    label = torch.tensor([0, 1, 2, 3, 50, 59, 0])  # the frequent ones are among the samples, and count once
    total = 0.0
    words, draws = by_hand(12, VOCAB, seed=5)
    assert set(words) & set(label.tolist())
    for h, own in zip(hidden.numpy(), label.tolist(), strict=True):
        scores = [own, *(word for word in words if word != own)]
        z = [h @ weight[v].numpy() + (bias[v].item() if biased else 0) - np.log(expected_by_hand(v, draws, VOCAB)) for v in scores]
        total += np.log(np.sum(np.exp(z))) - z[0]
    torch.manual_seed(5)
    assert sampled_cross_entropy(hidden, weight, bias, label, 12).item() == pytest.approx(total, rel=1e-12)


def test_the_sum_over_samples_is_expected_to_be_that_over_all_other_words():
    """But for what the number of draws, which is found by drawing, adds to the formula: 2 per cent of 30 in 60 words, nothing here."""
    torch.manual_seed(0)
    score, own, sums = torch.randn(4000, dtype=torch.float64), 3, []
    for _ in range(500):
        words, draws = log_uniform(400, 4000)
        kept = words[words != own]
        sums.append((score[kept].exp() / expected(kept, draws, 4000)).sum())
    want = (score.exp().sum() - score[own].exp()).item()
    assert torch.stack(sums).mean().item() == pytest.approx(want, rel=0.015)  # three standard errors


def test_the_gradient_is_autograds_and_reaches_only_labels_and_samples():
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, 4, dtype=torch.float64, generator=generator, requires_grad=True) for n in (3, VOCAB))
    label = torch.tensor([50, 51, 52])
    torch.manual_seed(2)
    words, _ = log_uniform(6, VOCAB)
    torch.manual_seed(2)
    sampled_cross_entropy(hidden, weight, None, label, 6).backward()
    assert weight.grad is not None
    touched = weight.grad.abs().sum(1).nonzero()[:, 0].tolist()
    assert touched == sorted({50, 51, 52, *words.tolist()})
