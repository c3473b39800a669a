"""A transformer block: sublayers with a residual and a norm each; PreNorm and PostNorm say in which order.

B batch, T length, S memory length, D width
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from luthier.core import feedforward
from luthier.core.attention import Attention, Mask
from luthier.core.cache import Cache
from luthier.core.position import Rotation
from luthier.core.virtual import Inserted


@dataclass(frozen=True)
class Context:
    """What every block of one forward pass is given beside the hidden states."""

    mask: Mask
    rotation: Rotation | None = None
    bias: Tensor | None = None
    memory_BSD: Tensor | None = None  # an encoder's output, for cross-attention
    memory_mask: Mask | None = None  # who sees what of it
    cache: Cache | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)  # inputs of one architecture alone
    inserted: Inserted | None = None  # where virtual tokens stand

    def taken(self, x_BTD: Tensor) -> Tensor:
        """The states of the tokens that the caller passed."""
        return x_BTD if self.inserted is None else self.inserted.taken(x_BTD)


class Block(nn.Module):
    """Attention, cross-attention where it is given, feed-forward; dropout falls on each sublayer's output.

    attn_dropout: the rate behind the attention, where it is another.
    """

    def __init__(
        self,
        attn: Attention,
        ffn: nn.Module,
        norm: Callable[[], nn.Module],
        cross: Attention | None = None,
        dropout: float = 0.0,
        attn_dropout: float | None = None,
    ):
        super().__init__()
        self.attn, self.attn_norm = attn, norm()
        self.cross, self.cross_norm = cross, None if cross is None else norm()
        self.ffn, self.ffn_norm = ffn, norm()
        self.dropout = feedforward.dropout(dropout)
        self.attn_dropout = self.dropout if attn_dropout is None else feedforward.dropout(attn_dropout)

    def attention(self, x: Tensor, context: Context, layer: int) -> Tensor:
        return self.attn_dropout(self.attn(x, context.mask, context.rotation, context.bias, cache=context.cache, layer=layer))

    def crossing(self, x: Tensor, context: Context, layer: int) -> Tensor:
        assert self.cross is not None and context.memory_BSD is not None and context.memory_mask is not None
        return self.dropout(self.cross(x, context.memory_mask, memory_BSD=context.memory_BSD, cache=context.cache, layer=layer))


class PreNorm(Block):
    """x + f(norm x) for each sublayer f."""

    def forward(self, x: Tensor, context: Context, layer: int) -> Tensor:
        x = x + self.attention(self.attn_norm(x), context, layer)
        if self.cross_norm is not None:
            x = x + self.crossing(self.cross_norm(x), context, layer)
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class PostNorm(Block):
    """norm(x + f x) for each sublayer f."""

    def forward(self, x: Tensor, context: Context, layer: int) -> Tensor:
        x = self.attn_norm(x + self.attention(x, context, layer))
        if self.cross_norm is not None:
            x = self.cross_norm(x + self.crossing(x, context, layer))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))
