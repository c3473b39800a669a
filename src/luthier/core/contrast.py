"""Contrastive losses: each picture finds its text among those of the batch, each text its picture.

N pairs, Q queries, D width; states are of length 1
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def alike(image_ND: Tensor, text_ND: Tensor) -> Tensor:
    """(N, N) cosines. Radford et al. 2021 (CLIP), arXiv:2103.00020, figure 3."""
    return image_ND @ text_ND.mT


def most_alike(image_NQD: Tensor, text_ND: Tensor) -> Tensor:
    """(N, N) cosines of each text and the query nearest to it. Li et al. 2023 (BLIP-2), arXiv:2301.12597, section 3.1."""
    return torch.einsum("nqd,md->nmq", image_NQD, text_ND).amax(-1)


def contrastive_loss(scores_NN: Tensor, scale: Tensor | float) -> Tensor:
    """The mean of both directions' cross-entropies; row n's own partner is column n. scale: the inverse of CLIP's temperature."""
    label_N = torch.arange(len(scores_NN), device=scores_NN.device)
    scores_NN = scores_NN * scale
    return (F.cross_entropy(scores_NN, label_N) + F.cross_entropy(scores_NN.mT, label_N)) / 2


def hard_negatives(scores_NN: Tensor, draw: bool = True) -> Tensor:
    """(N,) for each row one of the other columns: drawn, the likelier the higher its score, or the highest.

    Li et al. 2021 (ALBEF), arXiv:2107.07651, section 3.2. One row alone has none: ValueError.
    """
    if len(scores_NN) < 2:
        raise ValueError("one pair alone has no negative; compare two at least")
    own_NN = torch.eye(len(scores_NN), dtype=torch.bool, device=scores_NN.device)
    others_NN = scores_NN.detach().float().masked_fill(own_NN, -torch.inf)
    return torch.multinomial(others_NN.softmax(-1), 1)[:, 0] if draw else others_NN.argmax(-1)
