"""Text out of a model that fills in masks: the answer's length is chosen beforehand, and the text ends where the first end token stands."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch

from luthier.core.reader import Sampling
from luthier.core.unmask import Unmasking, stream_blocks
from luthier.sources.model import Model
from luthier.sources.writer import Writer


def settings(model: Model, given: dict[str, Any], others: Sequence[str]) -> Sampling | Unmasking:
    """How this model writes. What is given at its default changes nothing, so it is let through wherever it belongs; the rest is refused.

    others: names of settings that are not of the choice of tokens, for the sentence about unknown ones.
    """
    left, filled = ({field.name: field.default for field in fields(kind)} for kind in (Sampling, Unmasking))
    if unknown := sorted(given.keys() - left.keys() - filled.keys()):
        known = ", ".join(sorted({*left, *filled, *others}))
        raise ValueError(f"generate knows no {', '.join(map(repr, unknown))}; its settings are {known}")
    own, foreign = (left, filled) if model.net.fills is None else (filled, left)
    wrong = sorted(name for name, value in given.items() if name not in own and value != foreign[name])
    if wrong and model.net.fills is None:
        raise ValueError(
            f"{', '.join(wrong)}: for models that fill in masks (diffusion_lm); {model.source or 'this model'} writes from left to right"
        )
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)}: not for {model.source or 'this model'}, which fills in masks instead of writing from left to right; it "
            f"takes {', '.join(filled)}"
        )
    kind = Sampling if own is left else Unmasking
    return kind(**{name: value for name, value in given.items() if name in own})


def fill_texts(
    model: Model, prompts: Sequence[Sequence[int]], how: Unmasking, writers: Sequence[Writer], eos: frozenset[int], generator: Any
) -> list[str]:
    """One text for each writer; blocks that stand behind the end of every text are not filled in."""
    texts = [""] * len(writers)
    for pieces in stream_fill(model, prompts, how, writers, eos, generator):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    return texts


def stream_fill(
    model: Model,
    prompts: Sequence[Sequence[int]],
    how: Unmasking,
    writers: Sequence[Writer],
    eos: frozenset[int],
    generator: torch.Generator | None,
) -> Iterator[list[str]]:
    """What each finished block adds to each text."""
    assert model.net.fills is not None
    for blocks in stream_blocks(model.net, prompts, model.net.fills, how, generator):
        yield [_written(writer, block, eos) for writer, block in zip(writers, blocks, strict=True)]
        if all(writer.ended for writer in writers):
            return
    yield [writer.flush() for writer in writers]


def _written(writer: Writer, block: Sequence[int], eos: frozenset[int]) -> str:
    text = ""
    for token in block:
        text += writer.flush() if token in eos else writer.feed(token)
    return text
