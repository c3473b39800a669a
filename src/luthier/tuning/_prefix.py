"""Prefixes at the attention calls of a model: what prefix-tuning and P-tuning v2 share.

P prefix length, D model width, N layers, M numbers of all layers together, G key-value heads, K head width
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.call import Leading, Shift, call_of, heard, positions_of
from luthier.anatomy.site import Site
from luthier.core.attention import Prefix as Columns
from luthier.tuning._attached import Attached
from luthier.tuning._common import check_room, train_beside


class Flat(nn.Module):
    """The numbers themselves, (P, M): N(0, 1) at the start."""

    def __init__(self, length: int, numbers: int, like: Tensor):
        super().__init__()
        self.prefix = nn.Parameter(like.new_empty(length, numbers).normal_())

    def forward(self, start: int, stop: int) -> Tensor:
        return self.prefix[:, start:stop]

    @torch.no_grad()
    def give(self, prefix_PM: Tensor) -> None:
        """Become these numbers."""
        self.prefix.copy_(prefix_PM)


class Reparametrised(nn.Module):
    """outer(tanh(inner(words))), (P, M). Li & Liang 2021, section 4.3; the released code's initial values."""

    def __init__(self, length: int, numbers: int, width: int, hidden: int, like: Tensor):
        super().__init__()
        self.words = nn.Parameter(like.new_empty(length, width).normal_())
        self.inner = nn.Linear(width, hidden, device=like.device, dtype=like.dtype)
        self.outer = nn.Linear(hidden, numbers, device=like.device, dtype=like.dtype)
        self.known: tuple[Any, Tensor] | None = None  # the numbers, as long as nothing trains

    def forward(self, start: int, stop: int) -> Tensor:
        if torch.is_grad_enabled():
            return F.linear(self._hidden(), self.outer.weight[start:stop], self.outer.bias[start:stop])
        now = [(p._version, p.data_ptr(), p.dtype) for p in self.parameters()]
        if self.known is None or self.known[0] != now:
            self.known = now, self.outer(self._hidden())
        return self.known[1][:, start:stop]

    def train(self, mode: bool = True) -> "Reparametrised":
        self.known = None  # a fused optimizer's step leaves a parameter's version as it was
        return super().train(mode)

    def _hidden(self) -> Tensor:
        return torch.tanh(self.inner(self.words))

    @torch.no_grad()
    def give(self, prefix_PM: Tensor) -> None:
        """Become these numbers, by the smallest change of the outer weight. Exact while the hidden states of P words are independent."""
        missing = prefix_PM - self.outer(self._hidden())
        update = torch.linalg.pinv(self._hidden().double()) @ missing.double()
        self.outer.weight += update.T.to(self.outer.weight.dtype)


class LayerPrefix(Leading):
    """One attention's share of the numbers: its keys, then its values."""

    def __init__(self, group: str, source: Flat | Reparametrised, start: int, shapes: tuple[torch.Size, torch.Size], dropout: float):
        super().__init__()
        self.group, self.source, self.start, self.shapes, self.dropout = group, source, start, shapes, nn.Dropout(dropout)

    @property
    def numbers(self) -> int:
        return sum(groups * width for groups, _, width in self.shapes)

    def columns(self) -> Columns:
        (groups, length, key_width), (_, _, value_width) = self.shapes
        numbers = self.dropout(self.source(self.start, self.start + self.numbers))
        parts = zip(numbers.split([groups * key_width, groups * value_width], 1), (key_width, value_width), strict=True)
        return tuple(part.view(length, groups, width).transpose(0, 1) for part, width in parts)  # type: ignore[return-value]


@dataclass(frozen=True)
class Group:
    """The attentions that one set of numbers is for: `stack.self` or `stack.cross`."""

    name: str
    calls: list[Site]


def groups_of(anatomy: Anatomy, at: tuple[str, ...], blocks: Any) -> list[Group]:
    """Which attentions have prefixes: all kinds that the model has, or those of `at`."""
    have = [
        f"{name}.{which}"
        for name, stack in anatomy.stacks.items()
        for which, role in (("self", "q"), ("cross", "cross.q"))
        if role in stack.parts
    ]
    unknown = [name for name in at if name not in have]
    if unknown or not have:
        raise ValueError(f"no attention called {', '.join(unknown) or 'anything'} here; there are {', '.join(have) or 'none'}")
    return [Group(name, [call_of(anatomy, q) for q in anatomy.find(f"{name}.q", layers=blocks)]) for name in at or have]


def attach(
    anatomy: Anatomy,
    name: str,
    method: Any,
    length: int,
    hidden: int,
    words: Tensor | None,
    numbers: dict[str, Tensor] | None = None,
    beside: bool = True,
) -> Attached:
    """hidden: the MLP's width, 0 for none. words: ids whose keys and values the prefix starts as. numbers: (P, M) of each group.

    beside: train task heads and the like with it.
    """
    groups = groups_of(anatomy, method.at, method.blocks)
    check_room(anatomy, length)
    calls = [site for group in groups for site in group.calls]
    embedding = anatomy.embed.module.weight
    assert isinstance(embedding, Tensor)
    ids = torch.arange(3, 6)[None] % len(embedding) if words is None else words[None, :length]
    if ids.shape[1] < length and words is not None:
        raise ValueError(f"the prefix has {length} columns, and the text it starts from {ids.shape[1]} tokens: a longer text, or length")
    columns = heard(anatomy, calls, ids)
    silent = [site.path.removesuffix(".attend") for site in calls if site.path not in columns]
    if silent:
        raise ValueError(
            f"{type(anatomy.root).__name__} computes {silent[0]} by itself, not through transformers' attention registry, so no keys can stand "
            "before its own; take prompt or lora, or load the model from its folder with luthier"
        )
    parameters: dict[str, nn.Parameter] = {}
    for group in groups:
        pairs = [columns[site.path] for site in group.calls]
        sizes = [sum(x.shape[0] * x.shape[2] for x in pair) for pair in pairs]
        like = embedding if embedding.is_floating_point() else pairs[0][0]
        width = embedding.shape[1]
        source = Reparametrised(length, sum(sizes), width, hidden, like) if hidden else Flat(length, sum(sizes), like)
        if numbers is not None:
            _check(group.name, numbers, (length, sum(sizes)))
            source.give(numbers[group.name].to(like.device, like.dtype))
        elif words is not None:
            source.give(torch.cat([x.transpose(0, 1).flatten(1) for pair in pairs for x in pair], 1).to(like.dtype))
        for i, (site, pair) in enumerate(zip(group.calls, pairs, strict=True)):
            shapes = tuple(torch.Size((x.shape[0], length, x.shape[2])) for x in pair)
            site.wrap(name, LayerPrefix(group.name, source, sum(sizes[:i]), shapes, method.dropout))  # type: ignore[arg-type]
        parameters |= {f"{group.name}.prefix.{key}": value for key, value in source.named_parameters()}
        if group.name.endswith(".self") and method.shift:
            for site in positions_of(anatomy, group.name.partition(".")[0]):
                if site.adapter(name) is None:
                    site.wrap(name, Shift(length))
    return Attached(anatomy, name, method, parameters | (train_beside(anatomy, name, method.also_train) if beside else {}))


def _check(group: str, numbers: dict[str, Tensor], wanted: tuple[int, int]) -> None:
    have = tuple(numbers[group].shape) if group in numbers else "missing"
    if have != wanted:
        raise ValueError(f"the prefix of {group} is {have} in the file, here it is {wanted}: it is for another model")


def ids_of(anatomy: Anatomy, text: str) -> Tensor | None:
    """The text as ids, for methods that start from words."""
    if not text:
        return None
    tokenizer = anatomy.tokenizer
    if tokenizer is None:
        raise ValueError(f"starting from the words {text!r} needs the model's tokenizer: tune a Model that has one (luthier.tune)")
    return torch.tensor(tokenizer.encode(text))
