"""What is done to the next token's scores before one is chosen. Pure functions of (B, V) float scores; minus infinity rules a token out.

B rows, V vocabulary, T tokens so far
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

NEVER = float("-inf")


def repetition_penalty(scores_BV: Tensor, ids: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Scores of tokens that the row holds already: divided if positive, multiplied if negative. Keskar 2019, arXiv:1909.05858, section 4.1."""
    if penalty == 1.0:
        return scores_BV
    scores_BV = scores_BV.clone()
    for row, seen in zip(scores_BV, ids, strict=True):
        index = torch.tensor(sorted(set(seen)), dtype=torch.long, device=row.device)
        old = row[index]
        row[index] = torch.where(old < 0, old * penalty, old / penalty)
    return scores_BV


def without(scores_BV: Tensor, tokens: Collection[int]) -> Tensor:
    """Rule these tokens out: the end tokens while the text is too short."""
    if not tokens:
        return scores_BV
    return scores_BV.index_fill(1, torch.tensor(sorted(tokens), device=scores_BV.device), NEVER)


def top_k(scores_BV: Tensor, k: int) -> Tensor:
    """Only the k best tokens remain, and those that tie with the k-th; 0 keeps all. Fan et al. 2018, arXiv:1805.04833, section 5.4."""
    if not 0 < k < scores_BV.shape[1]:
        return scores_BV
    least_B1 = scores_BV.topk(k, dim=-1).values[:, -1:]
    return scores_BV.masked_fill(scores_BV < least_B1, NEVER)


def top_p(scores_BV: Tensor, p: float) -> Tensor:
    """The fewest best tokens whose probabilities reach p remain, at least one. Holtzman et al. 2019, arXiv:1904.09751, section 3.1."""
    if p >= 1.0:
        return scores_BV
    ordered, index = scores_BV.sort(dim=-1)  # worst first: the tail that may go has at most 1 - p in all
    drop = ordered.softmax(-1).cumsum(-1) <= 1 - p
    drop[:, -1] = False
    return scores_BV.masked_fill(torch.zeros_like(drop).scatter(1, index, drop), NEVER)
