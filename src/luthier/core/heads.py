"""What stands on the last hidden states: a vocabulary, a label per sentence, per token, a span.

N rows of any leading shape, D width, V vocabulary, L labels
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luthier.core import feedforward
from luthier.core.feedforward import ACTIVATIONS

# What each kind of head reads: every token, or one state of each sentence.
KINDS = {
    "classify": "sentence", "choose": "sentence", "regress": "sentence", "tag": "token", "spans": "token",
    "next_sentence": "sentence", "sentence_order": "sentence",
}  # fmt: skip
SENTENCE = ("classify", "choose", "regress")  # of tasks
# Heads of pre-training beside "lm": a field of this name says that the architecture has it.
PRETRAINING = ("next_sentence", "sentence_order", "span_boundary", "entities", "replaced")


class LanguageHead(nn.Module):
    """out(transform(hidden)): the transform is the identity in decoders; out's weight may be the embedding's."""

    def __init__(self, out: nn.Module, transform: nn.Module | None = None):
        super().__init__()
        self.transform, self.out = transform or nn.Identity(), out

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(self.transform(hidden))


class NormHead(nn.Module):
    """Scores by direction alone: x W^T with every row of W brought to length 1. No projection: what is added to its output is not in W."""

    def __init__(self, width: int, vocab: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab, width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight))

    @torch.no_grad()
    def fixed(self) -> nn.Linear:
        """The same scores as one product, with the weight of this moment."""
        out = nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=False, device="meta")
        out.weight = nn.Parameter(F.normalize(self.weight), requires_grad=False)
        return out


class Activation(nn.Module):
    """An activation as a module, by its name."""

    def __init__(self, act: str):
        super().__init__()
        self.act = ACTIVATIONS[act]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


def transform(width: int, out: int, act: str, eps: float) -> nn.Sequential:
    """What stands before the vocabulary of a masked language model: norm(act(dense x))."""
    return nn.Sequential(nn.Linear(width, out), Activation(act), nn.LayerNorm(out, eps))


class Scale(nn.Module):
    """Multiply by a constant (T5 scales the decoder's states before a tied softmax)."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Pooler(nn.Module):
    """act(dense x) of one state of each sentence. Devlin et al. 2018, arXiv:1810.04805, section 3.1 (C), with tanh."""

    def __init__(self, width: int, act: str = "tanh", dropout: float = 0.0):
        super().__init__()
        self.dropout, self.dense, self.act = feedforward.dropout(dropout), nn.Linear(width, width), ACTIVATIONS[act]

    def forward(self, state: Tensor) -> Tensor:
        return self.act(self.dense(self.dropout(state)))


class LabelHead(nn.Module):
    """(N, D) states to (N, L) scores: of a sentence's one state (through the pooler, where the model has one) or of each token."""

    def __init__(self, width: int, labels: int, bias: bool = True, pooler: Pooler | None = None, dropout: float = 0.0):
        super().__init__()
        self.pooler, self.dropout = pooler or nn.Identity(), nn.Dropout(dropout)
        self.out = nn.Linear(width, labels, bias)

    def forward(self, state: Tensor) -> Tensor:
        return self.out(self.dropout(self.pooler(state)))
