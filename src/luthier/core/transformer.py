"""The transformer, put together from parts. An architecture chooses parts and hands them to Transformer.

B batch, T length, D model width, V vocabulary
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.core.attention import Mask
from luthier.core.block import Block, Context
from luthier.core.cache import Cache
from luthier.core.fan import bare, fuse
from luthier.core.heads import KINDS, LabelHead, Pooler
from luthier.core.norm import RMSNorm
from luthier.core.position import Rotary, Sinusoid
from luthier.core.recompute import recomputed
from luthier.core.text import TEXT, Text
from luthier.core.virtual import Chooser, insert


@dataclass(frozen=True)
class Sight:
    """What a net asks of pictures. tokens: how many of a text's places one takes; 0 where pictures stand beside the text."""

    side: int  # pixels
    tokens: int = 0
    colours: Literal["clip", "vit"] = "clip"  # by whose mean and spread they are scaled


Lower = Callable[[Tensor, Context], tuple[int, Tensor]]  # the embedded input to (layers it stands for, what they make of it)


class Net(nn.Module, ABC):
    """What every network answers to, ours or foreign. `pool` says which state of a sentence its heads read: first or last."""

    width: int
    vocab: int
    causal: bool
    pool: str
    heads: nn.ModuleDict
    sight: Sight | None = None  # of nets that see pictures beside texts
    directions: int = 1  # 2: a state is one half for each direction of reading, and each half predicts words for itself
    spells: bool = False  # whether ids stand for words that are read by their characters; `learn_words` tells which words
    asks: bool = False  # whether the next token is asked for at a place of its own behind the text: `following`
    fills: int | None = None  # the token that stands for what is not known yet, in models that write by filling it in (core.unmask)

    @abstractmethod
    def hidden(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        prompts: tuple[int, ...] | None = None,
        types: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        allow: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, D), after the last norm.

        ids (B, T) int64; mask (B, T) bool, False for padding on either side; lengths: the one row holds documents of these lengths,
        which do not see each other and whose positions restart; prompts: with lengths, the first n tokens of each document see each
        other; types (B, T) segment ids; positions (B, T), from 0; cache: these ids follow the ones in it; allow (B or 1, H or 1, T, T) bool.
        """

    @abstractmethod
    def add_head(self, kind: str, labels: int) -> None:
        """Put a fresh head of that kind ("classify", "tag", "spans", "choose", "regress") into `heads`."""

    def states(self, ids: Tensor, mask: Tensor | None = None, **inputs: Any) -> list[Tensor]:
        """The embedding's output and every block's, each (B, T, D); the last is `hidden`."""
        raise ValueError(f"{type(self).__name__} gives its last states only; load the model from its folder instead")

    @property
    def writer(self) -> "Net":
        """The stack that writes: this one, or the language model in a joined one."""
        return self

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, V) scores of the next (causal) or the same (bidirectional) token from hidden states (B, T, D)."""
        if "lm" not in self.heads:
            raise ValueError("this model has no language-model head; load it from a checkpoint that has one")
        return self.heads["lm"](hidden)

    def following(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, V) scores of the token behind each row, of nets that ask for it."""
        raise ValueError(f"{type(self).__name__} does not ask for the next token; its states say what follows them")

    def fuse(self) -> None:
        """Lay frozen projections that share an input side by side in memory: each group is one product then. Values are kept."""

    def forward(self, ids: Tensor, mask: Tensor | None = None, **inputs: Any) -> Tensor:
        return self.logits(self.hidden(ids, mask, **inputs))


class Embedding(nn.Module):
    """Token vectors, plus position, segment and task vectors where the model has them; then norm, dropout, projection.

    pad: positions begin behind the row of this token, which keeps that row itself and is not counted (RoBERTa). limit: the most tokens
    that a model without such vectors takes.
    """

    def __init__(
        self,
        token: nn.Embedding,
        position: nn.Embedding | Sinusoid | None = None,
        types: nn.Embedding | None = None,
        norm: nn.Module | None = None,
        project: nn.Module | None = None,
        scale: float = 1.0,
        dropout: float = 0.0,
        tasks: nn.Embedding | None = None,
        pad: int | None = None,
        limit: int | None = None,
    ):
        super().__init__()
        self.token, self.position, self.types, self.tasks = token, position, types, tasks
        self.norm, self.project = norm or nn.Identity(), project or nn.Identity()
        self.scale, self.dropout, self.pad, self.limit = scale, nn.Dropout(dropout), pad, limit

    @property
    def positions(self) -> int | None:
        """How many positions there are; None for no limit."""
        return self.limit if self.position is None else self.position.num_embeddings - self.first

    @property
    def first(self) -> int:
        """The row of position 0."""
        return 0 if self.pad is None else self.pad + 1

    def forward(self, ids_BT: Tensor, position_BT: Tensor, type_BT: Tensor | None, tasks: Tensor | None = None) -> Tensor:
        x = self.token(ids_BT)
        if self.scale != 1.0:
            x = x * self.scale
        if self.position is not None:
            x = x + self.position(position_BT if self.pad is None else torch.where(ids_BT == self.pad, self.pad, position_BT + self.first))
        if self.types is not None:  # where there is one kind only, every token is of it
            x = x + (self.types(type_BT) if type_BT is not None and self.types.num_embeddings > 1 else self.types.weight[0])
        if self.tasks is not None:
            x = x + (self.tasks(tasks) if tasks is not None else self.tasks.weight[0])
        return self.project(self.dropout(self.norm(x)))


class Transformer(Net):
    """A stack of blocks between an embedding and heads.

    config: the architecture's dataclass. order: which block runs at each layer, so that layers may share one. recompute: keep only
    the input of each block and run it again in backward. label_bias: whether heads of sentences have a bias, or which kinds of them.
    poolers: makes a pooler for each head of these kinds alone; the others share `pooler`. label_dropout: before the labels of a sentence
    or token; dropouts: that of certain kinds of heads.
    """

    def __init__(
        self,
        config: Any,
        embed: Embedding,
        blocks: Sequence[Block],
        norm: nn.Module | None = None,
        lm: nn.Module | None = None,
        *,
        causal: bool,
        width: int,
        rotary: Rotary | None = None,
        relative: nn.Module | None = None,
        pooler: Pooler | None = None,
        order: tuple[int, ...] | None = None,
        label_bias: bool | tuple[str, ...] = True,
        label_dropout: float = 0.0,
        dropouts: Mapping[str, float] | None = None,
        poolers: Mapping[str, Callable[[], Pooler]] | None = None,
        init_std: float = 0.02,
    ):
        super().__init__()
        self.config, self.causal, self.width = config, causal, width
        self.embed, self.blocks, self.norm = embed, nn.ModuleList(blocks), norm or nn.Identity()
        self.heads = nn.ModuleDict({} if lm is None else {"lm": lm})
        self.rotary, self.relative, self.pooler = rotary, relative, pooler
        self.order = order or tuple(range(len(blocks)))
        self.pool = "last" if causal else "first"
        self.pooled = not causal  # whether heads of sentences read their state through a pooler
        self.label_bias, self.init_std, self.poolers = label_bias, init_std, poolers or {}
        self.dropouts = dict.fromkeys(("classify", "choose", "regress", "tag"), label_dropout) | dict(dropouts or {})
        self.recompute = False
        self.virtual: Chooser | None = None  # virtual tokens that stand before every text
        self.virtual_after = 0  # behind so many tokens of it
        self.lower: Lower | None = None  # runs the first layers in their place

    @property
    def vocab(self) -> int:  # type: ignore[override]
        return self.embed.token.num_embeddings

    def hidden(self, ids, mask=None, *, lengths=None, prompts=None, types=None, positions=None, cache=None, allow=None, **extra) -> Tensor:  # type: ignore[override]
        x, context = self.enter(ids, mask, lengths, prompts, types, positions, cache, allow, **extra)
        first, x = (0, x) if self.lower is None else self.lower(x, context)
        for x in self.layers(x, context, first):  # noqa: B007, B020  (the last one)
            pass
        return context.taken(self.norm(x))

    def states(self, ids: Tensor, mask: Tensor | None = None, **inputs: Any) -> list[Tensor]:
        """The embedding's output and every block's, layers + 1 tensors (B, T, D); the last one is normed as `hidden` is."""
        x, context = self.enter(ids, mask, **inputs)
        states = [x, *self.layers(x, context)]
        return [context.taken(x) for x in (*states[:-1], self.norm(states[-1]))]

    def enter(
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        lengths: tuple[int, ...] | None = None,
        prompts: tuple[int, ...] | None = None,
        types: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        allow: Tensor | None = None,
        **extra: Tensor,
    ) -> tuple[Tensor, Context]:
        """The embedded input (B, T, D) and what all blocks share. extra: what this model's own embedding and blocks take beside."""
        inserted = None
        if self.virtual is not None and (cache is None or cache.length == 0):
            inserted = insert(ids, mask, self.virtual, self.virtual_after, lengths)
        if inserted is not None:
            if positions is not None or allow is not None:
                raise ValueError("virtual tokens stand before the text, so positions and masks of one's own do not fit: leave them out")
            types = None if types is None else inserted.spread(types, 0)
            prompts = prompts and tuple(n + new - old for n, new, old in zip(prompts, inserted.lengths or (), lengths or (), strict=True))
            ids, mask, lengths = inserted.ids, inserted.mask, inserted.lengths
            if cache is not None:
                cache.notes["virtual"] = inserted.virtual
        self.check(ids, lengths, cache)
        keys = mask.bool() if mask is not None else None
        if cache is not None:
            place = cache.begin(ids.shape[0], ids.shape[1], keys).to(ids.device)
            keys = cache.keys
        else:
            place = _places(ids, keys if self.embed.pad is None else _counted(ids, keys, self.embed.pad), lengths)
        TEXT.set(Text(place.expand(ids.shape[0], -1), keys, lengths))
        place = place if positions is None else positions
        x = self.embed(ids, place, types, **extra)
        rotation = None if self.rotary is None else self.rotary(place, x.dtype)
        longest = max(lengths) if lengths else ids.shape[1]
        bias = (
            None
            if self.relative is None
            else self.relative(longest, cache.length if cache else longest, ids.device, None if lengths else keys)
        )
        bias = None if bias is None else bias.to(x.dtype)
        return x, Context(
            Mask(self.causal, None, lengths, prompts, keys, allow), rotation, bias, cache=cache, extra=extra, inserted=inserted
        )

    def layers(self, x: Tensor, context: Context, first: int = 0) -> Iterator[Tensor]:
        """What each layer from `first` on makes of x."""
        for layer, index in list(enumerate(self.order))[first:]:
            if self.recompute and torch.is_grad_enabled():
                x = recomputed(self.blocks[index], x, context, layer)
            else:
                x = self.blocks[index](x, context, layer)
            yield x

    def fuse(self) -> None:
        for block in self.blocks:
            for part in (block.attn, block.ffn):
                inputs = [bare(getattr(part, name)) for name in part.fans]  # type: ignore[union-attr]
                if all(type(module) is nn.Linear and not module.weight.requires_grad for module in inputs):
                    fuse(inputs)  # type: ignore[arg-type]

    def add_head(self, kind: str, labels: int) -> None:
        if kind not in KINDS:
            raise ValueError(f"no head called {kind!r}; there are {', '.join(KINDS)}")
        parameter = self.embed.token.weight
        pooler = self._pooler(kind) if KINDS[kind] == "sentence" and self.pooled else None
        biased = KINDS if self.label_bias is True else self.label_bias or ()
        bias = kind in biased or KINDS[kind] == "token"
        head = LabelHead(self.width, labels, bias, pooler, self.dropouts.get(kind, 0.0))
        _fresh(head.out, self.init_std)
        self.heads[kind] = head.to(parameter.device, parameter.dtype).train(self.training)

    def _pooler(self, kind: str) -> Pooler:
        """A new one, unless heads of this kind read sentences through the one that the model has."""
        if kind not in self.poolers and isinstance(self.pooler, Pooler):
            return self.pooler
        parameter = self.embed.token.weight
        make = self.poolers.get(kind) or (lambda: Pooler(self.width))
        pooler = _fresh(make(), self.init_std).to(parameter.device, parameter.dtype)
        assert isinstance(pooler, Pooler)
        if kind not in self.poolers:
            self.pooler = pooler
        return pooler

    def check(self, ids: Tensor, lengths: tuple[int, ...] | None, cache: Cache | None) -> None:
        """ValueError where these ids do not fit: packed lengths that do not add up, more tokens than positions."""
        if lengths is not None and (ids.shape[0] != 1 or sum(lengths) != ids.shape[1]):
            raise ValueError(
                f"packed documents of {sum(lengths)} tokens in all need ids of shape (1, {sum(lengths)}), not {tuple(ids.shape)}"
            )
        longest = (max(lengths) if lengths else ids.shape[1]) + (cache.length if cache is not None else 0)
        if self.embed.positions is not None and longest > self.embed.positions:
            raise ValueError(f"a sequence of {longest} tokens is beyond the model's {self.embed.positions} positions; shorten it")


def _places(ids: Tensor, keys: Tensor | None, lengths: tuple[int, ...] | None) -> Tensor:
    """Each token's position: they restart in every packed document, and padding (where keys is False) does not count."""
    if lengths is not None and keys is None:
        return torch.cat([torch.arange(n, device=ids.device) for n in lengths])[None]
    if keys is not None:
        documents = [keys] if lengths is None else keys.split(lengths, 1)
        return torch.cat([(part.cumsum(-1) - 1).clamp(min=0) for part in documents], 1)
    return torch.arange(ids.shape[1], device=ids.device)[None]


def _counted(ids: Tensor, keys: Tensor | None, pad: int) -> Tensor:
    """Where a position is counted: at real tokens that are not the padding token."""
    return ids != pad if keys is None else keys & (ids != pad)


def _fresh(module: nn.Module, std: float) -> nn.Module:
    """New weights: normal with this standard deviation; biases 0, norms 1."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm | RMSNorm):
            nn.init.ones_(part.weight)
            if isinstance(part, nn.LayerNorm):
                nn.init.zeros_(part.bias)
    return module


def initialise(net: Transformer, residual_std: float | None = None) -> Transformer:
    """Fresh weights for the whole net; residual_std for the projections that write into the residual stream (GPT-2's 0.02/sqrt(2L))."""
    _fresh(net, net.init_std)
    if residual_std is not None:
        for block in net.blocks:
            nn.init.normal_(block.attn.o.weight, std=residual_std)  # type: ignore[union-attr]
            nn.init.normal_(block.ffn.down.weight, std=residual_std)  # type: ignore[union-attr]
    return net
