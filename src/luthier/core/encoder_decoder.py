"""An encoder that reads one text and a decoder that writes another. Vaswani et al. 2017, arXiv:1706.03762, section 3.

B batch, S length of the source, T of the target, D model width
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.core import feedforward
from luthier.core.attention import Mask
from luthier.core.block import Block, Context
from luthier.core.cache import Cache
from luthier.core.fan import bare, fuse
from luthier.core.transformer import Embedding, Transformer


class EncoderDecoder(Transformer):
    """A decoder, which is what a Transformer is, whose blocks also attend to the last states of `encoder`.

    start: the token that stands before every target. dropout falls on the last states of both stacks.
    """

    def __init__(
        self,
        config: Any,
        encoder: Transformer,
        embed: Embedding,
        blocks: Sequence[Block],
        norm: nn.Module | None = None,
        lm: nn.Module | None = None,
        *,
        width: int,
        start: int,
        dropout: float = 0.0,
        **parts: Any,
    ):
        super().__init__(config, embed, blocks, norm, lm, causal=True, width=width, **parts)
        self.encoder, self.start, self.dropout = encoder, start, feedforward.dropout(dropout)
        self.pooled = True  # heads of sentences

    def hidden(  # type: ignore[override]
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        decoder_ids: Tensor | None = None,
        decoder_mask: Tensor | None = None,
        decoder_lengths: tuple[int, ...] | None = None,
        cache: Cache | None = None,
        stack: Literal["", "encoder", "decoder"] = "",
        **others: Any,
    ) -> Tensor:
        """The decoder's states (B, T, D) of decoder_ids (B, T), which begin with `start`, given the source ids (B, S).

        decoder_mask and decoder_lengths are to decoder_ids what mask and lengths are to ids: packed targets go with as many packed
        sources. A cache remembers the source too: the calls after the first do not look at ids. stack: instead of decoder_ids, for heads
        that read the text itself: the states (B, S, D) of the encoder, or those of the decoder, which reads the same text once more
        behind `start` (Lewis et al. 2019, arXiv:1910.13461, section 3.1); there are no segments, so types change nothing.
        """
        if stack == "encoder":
            return self.encode(ids, mask, lengths)
        if stack == "decoder":
            others.pop("types", None)
            decoder_ids, decoder_mask, decoder_lengths = again(ids, self.start, mask, lengths), mask, lengths
        if decoder_ids is None:
            raise ValueError(f"{type(self.config).__name__} reads one text and writes another: give decoder_ids beside ids")
        if refused := [name for name, value in others.items() if value is not None]:
            raise ValueError(f"{type(self.config).__name__} takes no {' and no '.join(refused)}: an encoder-decoder finds them by itself")
        if (lengths is None) != (decoder_lengths is None) or (lengths and len(lengths) != len(decoder_lengths or ())):
            raise ValueError(f"packed sources of lengths {lengths} need as many packed targets, not {decoder_lengths}")
        memory_BSD, keys, lengths = self._memory(ids, mask, lengths, cache)
        x, context = self.enter(decoder_ids, decoder_mask, decoder_lengths, cache=cache)
        memory_mask = Mask(lengths=context.mask.lengths, key_lengths=lengths, keys=keys)
        context = replace(context, memory_BSD=memory_BSD, memory_mask=memory_mask)
        for x in self.layers(x, context):  # noqa: B007, B020  (the last one)
            pass
        return self.dropout(context.taken(self.norm(x)))

    def encode(self, ids: Tensor, mask: Tensor | None = None, lengths: tuple[int, ...] | None = None) -> Tensor:
        """The encoder's last states, (B, S, D)."""
        states, context = self._encoded(ids, mask, lengths)
        return context.taken(states)

    def _encoded(self, ids: Tensor, mask: Tensor | None, lengths: tuple[int, ...] | None) -> tuple[Tensor, Context]:
        """With the states of virtual tokens, which the decoder looks at too, and what the encoder's blocks were given."""
        self.encoder.recompute = self.recompute
        x, context = self.encoder.enter(ids, mask, lengths)
        for x in self.encoder.layers(x, context):  # noqa: B007, B020  (the last one)
            pass
        return self.dropout(self.encoder.norm(x)), context

    def fuse(self) -> None:
        super().fuse()
        self.encoder.fuse()
        for block in self.blocks:
            inputs = [bare(block.cross.k), bare(block.cross.v)]  # type: ignore[union-attr, arg-type]
            if all(type(module) is nn.Linear and not module.weight.requires_grad for module in inputs):
                fuse(inputs)  # type: ignore[arg-type]

    def _memory(
        self, ids: Tensor, mask: Tensor | None, lengths: tuple[int, ...] | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None, tuple[int, ...] | None]:
        """What the encoder says of the source, which of its positions are real (None: all), and the lengths of packed ones."""
        if cache is not None and cache.memory is not None:
            return *cache.memory, lengths
        keys = None if mask is None else mask.bool()
        states, context = self._encoded(ids, keys, lengths)
        seen = context.mask
        if cache is not None:
            cache.memory = states, seen.keys
        return states, seen.keys, seen.lengths


def again(ids_BT: Tensor, start: int, mask_BT: Tensor | None = None, lengths: tuple[int, ...] | None = None) -> Tensor:
    """What a decoder reads that says the same text again: every token but the last, one place later, behind the start token.

    mask: False for padding, on either side; lengths: of the documents in the one row.
    """
    later_BT = ids_BT.roll(1, -1)
    if lengths is not None:
        begins = torch.tensor(lengths, device=ids_BT.device).cumsum(0).roll(1)
        begins[0] = 0
        return later_BT.index_fill(1, begins, start)
    if mask_BT is None:
        return later_BT.index_fill(1, torch.zeros(1, dtype=torch.long, device=ids_BT.device), start)
    return later_BT.masked_fill(mask_BT.bool() & (mask_BT.cumsum(-1) == 1), start)
