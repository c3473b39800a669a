"""Virtual tokens before a text: what prompt tuning and P-tuning share, and how they start.

P virtual tokens, D width of the embedding, V vocabulary
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.virtual import Rows, free, rows_at, stand
from luthier.core.transformer import Net
from luthier.tuning._attached import Attached
from luthier.tuning._common import check_room, train_beside

Start = Literal["uniform", "scale", "vocabulary"]
COMMON = 5_000  # the paper samples among so many first ids


class Prompt(Rows):
    """The vectors themselves. hard: they do not train."""

    def __init__(self, rows_PD: Tensor, stack: str, first: int, hard: bool = False):
        super().__init__()
        self.stack, self.first = stack, first
        if hard:
            self.register_buffer("rows", rows_PD)
        else:
            self.rows = nn.Parameter(rows_PD)

    def table(self) -> Tensor:
        return self.rows  # type: ignore[return-value]

    def count(self) -> int:
        return len(self.rows)  # type: ignore[arg-type]


class Encoded(Rows):
    """What an encoder makes of a smaller start: mlp(lstm(words)), or mlp(words). Liu et al. 2021, arXiv:2103.10385, eq. 4."""

    def __init__(self, length: int, like: Tensor, lstm: bool, layers: int, stack: str, first: int):
        super().__init__()
        self.stack, self.first, width = stack, first, like.shape[1]
        where: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.words = nn.Parameter(like.new_empty(length, width).normal_())
        self.lstm = nn.LSTM(width, width // 2, layers, bidirectional=True, batch_first=True, **where) if lstm else None
        self.inner, self.outer = nn.Linear(width // 2 * 2 if lstm else width, width, **where), nn.Linear(width, width, **where)
        self.known: tuple[Any, Tensor] | None = None  # the vectors, as long as nothing trains

    def table(self) -> Tensor:
        if torch.is_grad_enabled():
            return self._made()
        now = [(p._version, p.data_ptr(), p.dtype) for p in self.parameters()]
        if self.known is None or self.known[0] != now:
            self.known = now, self._made()
        return self.known[1]

    def train(self, mode: bool = True) -> "Encoded":
        self.known = None  # a fused optimizer's step leaves a parameter's version as it was
        return super().train(mode)

    def _made(self) -> Tensor:
        x_PD = self.words if self.lstm is None else self.lstm(self.words[None])[0][0]
        return self.outer(F.relu(self.inner(x_PD)))

    def count(self) -> int:
        return len(self.words)


def encoded(method: Any, like: Tensor, length: int, stack: str, first: int) -> Encoded:
    """The encoder that a p_tuning asks for."""
    made = Encoded(length, like, method.encoder == "lstm", method.layers, stack, first)
    made.template = method.template
    return made


def stacks_of(anatomy: Anatomy, at: tuple[str, ...]) -> tuple[str, ...]:
    """Before which stacks' texts: those of `at`; left out, the encoder's of a pair, as in the paper, else the only one's."""
    unknown = [name for name in at if name not in anatomy.stacks]
    if unknown:
        raise ValueError(f"no stack called {', '.join(unknown)} here; there are {', '.join(anatomy.stacks)}")
    return at or (("encoder",) if "encoder" in anatomy.stacks else tuple(anatomy.stacks)[:1])


@torch.no_grad()
def begin(weight_VD: Tensor, length: int, start: Start, words: Tensor | None, labels: list[list[int]]) -> Tensor:
    """(P, D). words: ids of a text, repeated as often as needed. labels: each the mean of its sub-words, sampled rows after them."""
    if words is not None:
        return weight_VD[words.repeat(-(-length // len(words)))[:length].to(weight_VD.device)].clone()
    known = [weight_VD[torch.tensor(ids, device=weight_VD.device)].mean(0) for ids in labels[:length]]
    rest = length - len(known)
    if start == "vocabulary" or known:
        among = min(COMMON, len(weight_VD))
        if rest > among:
            raise ValueError(f"{rest} rows cannot be sampled among {among} tokens without taking one twice: fewer, or another start")
        rows = weight_VD[torch.randperm(among)[:rest].to(weight_VD.device)]
    elif start == "uniform":
        rows = weight_VD.new_empty(rest, weight_VD.shape[1]).uniform_(-0.5, 0.5)
    else:
        rows = weight_VD.new_empty(rest, weight_VD.shape[1]).normal_(float(weight_VD.float().mean()), float(weight_VD.float().std()))
    return torch.cat([torch.stack(known), rows]) if known else rows.clone()


def put(anatomy: Anatomy, name: str, method: Any, adapters: Mapping[str, Rows], beside: bool = True, ours: bool = True) -> Attached:
    """These rows, one set for each stack, at work before its texts; behind the first token where a head reads that one's state.

    ours: whether they were made here; other libraries have them before the first token in any case.
    """
    read = ours and isinstance(anatomy.net, Net) and anatomy.net.pool == "first" and bool(anatomy.task_heads())
    parameters: dict[str, nn.Parameter] = {}
    for stack, adapter in adapters.items():
        check_room(anatomy, adapter.count())
        site = rows_at(anatomy, stack or stacks_of(anatomy, ())[0])
        if site.adapter(name) is not None:
            raise ValueError("encoder and decoder share one embedding here: give the second prompt an adapter name of its own")
        site.wrap(name, adapter)
        if stack:
            stand(anatomy, stack, int(read))
        parameters |= {f"{stack or 'text'}.prompt.{key}": value for key, value in adapter.named_parameters()}
    return Attached(anatomy, name, method, parameters | (train_beside(anatomy, name, method.also_train) if beside else {}))


def weight_of(anatomy: Anatomy, stack: str) -> Tensor:
    weight = rows_at(anatomy, stack).module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


__all__ = ["Encoded", "Prompt", "Start", "begin", "encoded", "free", "put", "stacks_of", "weight_of"]
