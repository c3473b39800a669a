"""Losses and predictions of a vocabulary head at labelled positions; the logits of all positions never exist at once.

N tokens, M labelled positions, D width, V vocabulary
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from luthier.core.adaptive import AdaptiveSoftmax
from luthier.core.loss import BLOCK, linear_cross_entropy
from luthier.core.sampled import sampled_cross_entropy
from luthier.objectives._batch import Batch, Term, wide
from luthier.sources.model import Model


def token_loss(
    hidden: Tensor,
    heads: nn.ModuleDict,
    batch: Batch,
    term: str,
    smoothing: float = 0.0,
    share_M: Tensor | None = None,
    sampled: int = 0,
) -> Term:
    """Summed cross-entropy of the labels of a term, read at its positions of hidden (1, N, D).

    smoothing e: the label has probability 1 - e + e/V, every other entry of the vocabulary e/V. share: what each
    label's loss is multiplied by (without smoothing). sampled: against so many words instead of all (alone).
    """
    assert share_M is None or not smoothing
    head, state_MD, label_M = _head(heads), hidden[0, batch.at[term]], batch.labels[term]
    state_MD = head.transform(state_MD)
    if isinstance(head.out, AdaptiveSoftmax) and not smoothing:
        return Term(head.out.loss(state_MD, label_M), len(label_M))
    if sampled:
        assert share_M is None and not smoothing
        out: Any = head.out
        return Term(sampled_cross_entropy(state_MD, out.weight, out.bias, label_M, sampled), len(label_M))
    if type(head.out) is nn.Linear:
        loss = linear_cross_entropy(state_MD, head.out.weight, head.out.bias, label_M, share_M)
        return Term(loss + smoothing * _lead(state_MD, head.out, label_M) if smoothing else loss, len(label_M))
    share_M = wide(state_MD).new_ones(len(label_M)) if share_M is None else share_M
    losses = [  # something is wrapped around the head: ask it block by block, and again in backward
        checkpoint(_block_loss, head.out, state, label, share, smoothing, use_reentrant=False)
        for state, label, share in zip(state_MD.split(BLOCK), label_M.split(BLOCK), share_M.split(BLOCK), strict=True)
    ]
    return Term(torch.stack(losses).sum(), len(label_M))  # type: ignore[arg-type]


def token_losses(hidden: Tensor, heads: nn.ModuleDict, batch: Batch, term: str) -> Tensor:
    """(M,) -log p of every label, for losses that weigh them by each other; a block's logits are made again in backward."""
    head, label_M = _head(heads), batch.labels[term]
    state_MD = head.transform(hidden[0, batch.at[term]])
    losses = [
        checkpoint(_label_losses, head.out, state, label, use_reentrant=False)
        for state, label in zip(state_MD.split(BLOCK), label_M.split(BLOCK), strict=True)
    ]
    return torch.cat(losses)  # type: ignore[arg-type]


def best_tokens(hidden: Tensor, heads: nn.ModuleDict, batch: Batch, term: str) -> list[list[int]]:
    """For each example the likeliest token at each of its labelled positions."""
    head, state_MD = _head(heads), hidden[0, batch.at[term]]
    best = torch.cat([head(block).argmax(-1) for block in state_MD.split(BLOCK)])
    return [part.tolist() for part in best.split([len(example.labels[term]) for example in batch.examples])]


def refuse_encoder(model: Model, kind: str) -> None:
    if not model.net.causal:
        raise ValueError(f"objective {kind} needs a decoder; {model.source} is an encoder, which takes masked and the tasks")


def refuse_two_ways(model: Model, kind: str) -> None:
    if model.net.directions > 1:
        raise ValueError(f"objective {kind} reads one state of each token, and {model.source} has one for each direction; take bilm")


def _head(heads: nn.ModuleDict) -> Any:
    """A head of out(transform(hidden)): ours, or the one a transformers model brings along."""
    if "lm" not in heads:
        raise ValueError("this model has no language-model head; load it from a checkpoint that has one")
    return heads["lm"]


def _lead(state_MD: Tensor, out: nn.Linear, label_M: Tensor) -> Tensor:
    """How far the labels' scores lie above the mean score, summed: e times it is what smoothing by e adds, and takes no logits."""
    away_MD = out.weight[label_M] - out.weight.mean(0)
    lead = wide((state_MD * away_MD).sum(-1)).sum()
    return lead if out.bias is None else lead + wide(out.bias[label_M] - out.bias.mean()).sum()


def _block_loss(out: nn.Module, state: Tensor, label: Tensor, share: Tensor, smoothing: float = 0.0) -> Tensor:
    return (F.cross_entropy(wide(out(state)), label, reduction="none", label_smoothing=smoothing) * share).sum()


def _label_losses(out: nn.Module, state: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(wide(out(state)), label, reduction="none")
