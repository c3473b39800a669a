"""A row's pictures in an example."""

import random

from torch import Tensor

from luthier.data.illustrated import pictures
from luthier.data.stream import Sample
from luthier.data.tokenizer import Ranges
from luthier.objectives._batch import quoted
from luthier.sources import sight
from luthier.sources.model import Model


def pixels_of(sample: Sample, model: Model) -> tuple[Tensor, ...]:
    """(3, Y, X) for each picture of the row, as the model wants them."""
    return sight.pixels_of(pictures(sample.row), model)


def caption(sample: Sample) -> str:
    """The row's text; of several captions one that belongs to this draw."""
    text = sample.row["text"]
    return text if isinstance(text, str) else random.Random(sample.key("caption")).choice(text)


def spread(ids: list[int], ranges: Ranges, sample: Sample, model: Model) -> tuple[list[int], Ranges]:
    """Tokens in which each <image> has become as many as a picture takes, and the ranges moved with them."""
    try:
        return sight.spread(ids, ranges, len(pictures(sample.row)), model)
    except ValueError as error:
        raise ValueError(f"{error}: {quoted(sample)}") from None


def whole(ids: list[int], count: int, model: Model) -> bool:
    """Whether all places of so many pictures are still there, after a cut."""
    seen = model.net.sight
    return seen is None or ids.count(model.net.vocab) == count * seen.tokens
