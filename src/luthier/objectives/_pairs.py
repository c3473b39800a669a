"""Batches for an encoder-decoder: sources and targets follow each other in turn, as documents of one pack.

N tokens
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from luthier.objectives._batch import Batch
from luthier.sources.model import Model


def start_of(model: Model) -> int:
    """The token before every target."""
    net: Any = model.net  # an EncoderDecoder or a Foreign one
    return net.start


def pair_inputs(batch: Batch) -> dict[str, Any]:
    """Keyword arguments of net.hidden."""
    written_N = is_target(batch)
    return {
        "ids": batch.ids[:, ~written_N], "lengths": batch.lengths[::2],
        "decoder_ids": batch.ids[:, written_N], "decoder_lengths": batch.lengths[1::2],
    }  # fmt: skip


def is_target(batch: Batch) -> Tensor:
    """(N,) bool: sources and targets follow each other in turn."""
    lengths = torch.tensor(batch.lengths, device=batch.ids.device)
    return (torch.arange(len(lengths), device=lengths.device) % 2 == 1).repeat_interleave(lengths)


def in_targets(batch: Batch) -> Batch:
    """The same batch with positions counted in the targets alone, as the decoder's states are."""
    place_N = is_target(batch).cumsum(0) - 1
    return replace(batch, at={term: place_N[at] for term, at in batch.at.items()})
