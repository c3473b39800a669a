"""Where a transformers model's stacks are told of the text at hand, as ours are (core/text.py)."""

import inspect
from typing import Any

import torch

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.virtual import reader
from luthier.core.text import TEXT, Text


def listen(anatomy: Anatomy) -> None:
    """From now on each text that enters is known by its places."""
    for stack in anatomy.stacks if anatomy.kind else ():
        module = reader(anatomy, stack)
        if _enter not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_enter, with_kwargs=True)  # behind a Border's, which lets virtual tokens in


def _enter(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
    text = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    past, mask = given.get("past_key_values"), given.get("attention_mask")
    start, count = 0 if past is None else past.get_seq_length(), text.shape[1]
    if mask is not None and mask.dim() == 2:
        real = mask.bool()
        TEXT.set(Text((real.long().cumsum(1) - 1).clamp(min=0)[:, -count:], real[:, -count:]))
        return
    place = torch.arange(start, start + count, device=text.device)
    TEXT.set(Text(place.expand(text.shape[0], -1)))
