"""Pictures from files as the numbers a ViT reads. Needs Pillow (pip install "luthier[vision]").

N pictures, Y and X pixels of a square
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Colours = tuple[tuple[float, ...], tuple[float, ...]]
# Mean and spread of each colour: CLIP's, which EVA and BLIP-2 use too (Radford et al. 2021, arXiv:2103.00020), and ViT's own.
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
VIT = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
KEPT = 4096  # squares that stay in memory, 150 kB each at 224 pixels a side


def read_pictures(paths: Sequence[str | Path], side: int, colours: Colours = CLIP) -> "Tensor":
    """(N, 3, side, side) float32: scaled to a square (bicubic), colours 0 to 1 less their mean, over their spread.

    A file is decoded once as long as its square is kept. ValueError where Pillow is missing or a file is no picture.
    """
    import torch

    squares = torch.stack([_square(str(path), side) for path in paths])
    mean, spread = (torch.tensor(values).view(3, 1, 1) for values in colours)
    return (squares.float() / 255 - mean) / spread


def check_pictures(paths: Sequence[str | Path]) -> None:
    """FileNotFoundError or ValueError where one is missing or no picture; only the beginning of each file is read."""
    for path in paths:
        if "://" in str(path):
            raise ValueError(f"{path}: pictures are read from files; fetch this one first, and name the file")
        if not Path(path).is_file():
            raise FileNotFoundError(f"no picture at {path}; paths are relative to the folder of the data file")
        _opened(path).close()


@lru_cache(KEPT)
def _square(path: str, side: int) -> "Tensor":
    """(3, side, side) uint8."""
    import torch
    from PIL import Image

    try:
        with _opened(path) as picture:
            square = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    except OSError as error:
        raise ValueError(f"{path}: this picture cannot be decoded ({error}); fetch it again, or remove its row") from error
    return torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1)


def _opened(path: str | Path) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ValueError('pictures need Pillow: pip install "luthier[vision]"') from None
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no picture that Pillow knows") from None


def varied(pictures: "Tensor", strength: float) -> "Tensor":
    """(N, C, Y, X) pictures mirrored in half the cases, and at random up to `strength` larger or smaller, half as far moved (their edges
    are drawn out), lighter or darker, of more or less contrast. From torch's general generator."""
    import torch
    from torch.nn import functional as F

    def between(*shape: int) -> "Tensor":
        return (2 * torch.rand(len(pictures), *shape, device=pictures.device) - 1).to(pictures.dtype) * strength

    size_N, side_N = 1 + between(), torch.where(torch.rand(len(pictures), device=pictures.device) < 0.5, -1, 1)
    zero_N = torch.zeros_like(size_N)
    rows = torch.stack([torch.stack([size_N * side_N, zero_N, between() / 2], -1), torch.stack([zero_N, size_N, between() / 2], -1)], 1)
    moved = F.grid_sample(
        pictures, F.affine_grid(rows, list(pictures.shape), align_corners=False), padding_mode="border", align_corners=False
    )
    return moved * (1 + between(1, 1, 1)) + between(1, 1, 1)
