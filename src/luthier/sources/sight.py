"""Pictures as a model takes them: their pixels, and the places in a text that they stand at.

C channels, Y and X pixels of a square
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from luthier.data.illustrated import IMAGE
from luthier.data.pictures import CLIP, VIT, read_pictures
from luthier.data.tokenizer import Ranges
from luthier.sources.model import Model


def pixels_of(paths: Sequence[str | Path], model: Model) -> tuple[Tensor, ...]:
    """(3, Y, X) for each picture."""
    if not paths:
        return ()
    sight = model.net.sight
    if sight is None:
        raise ValueError(f"{model.source or 'this model'} sees no pictures; take one that does (minigpt4, blip2), or leave them out")
    return tuple(read_pictures(paths, sight.side, CLIP if sight.colours == "clip" else VIT))


def spread(ids: list[int], ranges: Ranges, pictures: int, model: Model) -> tuple[list[int], Ranges]:
    """Tokens in which each <image> has become as many as a picture takes, and ranges of tokens moved with them."""
    sight = model.net.sight
    if sight is None or not sight.tokens:
        return ids, ranges
    assert model.tokenizer is not None
    mark, more = model.tokenizer.id(IMAGE), sight.tokens - 1
    places = [i for i, token in enumerate(ids) if token == mark]
    if len(places) != pictures:
        raise ValueError(f"{pictures} pictures and {len(places)} places for them ({IMAGE}) in one text; each picture needs one place")
    wide = [other for token in ids for other in ([model.net.vocab] * sight.tokens if token == mark else [token])]

    def moved(i: int) -> int:
        return i + more * sum(place < i for place in places)

    return wide, [(moved(start), moved(stop)) for start, stop in ranges]
