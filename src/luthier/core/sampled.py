"""A softmax over some of a large vocabulary while it is trained. Jean et al. 2015, arXiv:1412.2007; the sampler: TensorFlow's log-uniform one.

Words are drawn without repetition, word v with a chance that falls as 1 / (v + 1): vocabularies list frequent words first. Every score is
lessened by the logarithm of how often its word is expected in the sample, so that the sum over it stands for the sum over all.

N positions, D width, V vocabulary, S sampled words
"""

import math

import torch
from torch import Tensor


def log_uniform(samples: int, vocab: int, device: torch.device | str = "cpu") -> tuple[Tensor, int]:
    """Different words (S,), in the order drawn, and how many draws they took; a draw is v with log((v + 2) / (v + 1)) / log(V + 1)."""
    words_X = torch.empty(0, dtype=torch.long, device=device)
    while True:
        share_X = torch.rand(2 * samples, dtype=torch.float64, device=device)
        words_X = torch.cat([words_X, (share_X * math.log(vocab + 1)).exp().long().sub_(1).clamp_(max=vocab - 1)])
        different, which_X = words_X.unique(return_inverse=True)
        if len(different) >= samples:
            break
    place_X = torch.arange(len(words_X), device=device)
    first = place_X.new_full((len(different),), len(words_X)).scatter_reduce_(0, which_X, place_X, "amin").sort().values[:samples]
    return words_X[first], int(first[-1]) + 1


def expected(words: Tensor, draws: int, vocab: int) -> Tensor:
    """How often a word is expected among so many draws without repetition: 1 - (1 - p)^draws, float64, of the words' shape.

    TensorFlow takes S p, which may be above 1, where no draw was in vain: rightly for draws with repetition, and next to never here.
    """
    chance = torch.log1p(1 / (words.double() + 1)) / math.log(vocab + 1)
    return -torch.expm1(draws * torch.log1p(-chance))


def sampled_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, label_N: Tensor, samples: int) -> Tensor:
    """Sum over the positions of the cross-entropy of each label against the same S sampled words, in nats; the label itself does not count twice.

    hidden (N, D), weight (V, D), bias (V) or None, label (N) int64. The words are torch's global generator's.
    """
    vocab = len(weight_VD)
    word_S, draws = log_uniform(samples, vocab, label_N.device)

    def offset(words: Tensor) -> Tensor:
        away = expected(words, draws, vocab).log().to(hidden_ND.dtype)
        return -away if bias_V is None else bias_V[words] - away

    score_NS = torch.addmm(offset(word_S), hidden_ND, weight_VD[word_S].T)
    score_NS = score_NS.masked_fill(word_S == label_N[:, None], float("-inf"))
    own_N = (hidden_ND * weight_VD[label_N]).sum(-1) + offset(label_N)
    wide_NX = torch.cat([own_N[:, None], score_NS], 1)
    wide_NX = wide_NX if wide_NX.dtype == torch.float64 else wide_NX.float()
    return (wide_NX.logsumexp(1) - wide_NX[:, 0]).sum()
