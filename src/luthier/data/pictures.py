"""Pictures from files as the numbers a ViT reads. Needs Pillow (pip install "luthier[pictures]").

N pictures, Y and X pixels of a square
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

# Mean and spread of each colour: CLIP's, which EVA and BLIP-2 use too (Radford et al. 2021, arXiv:2103.00020), and ViT's own.
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
VIT = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def read_pictures(paths: Sequence[str | Path], side: int, colours: tuple[tuple[float, ...], tuple[float, ...]] = CLIP) -> Tensor:
    """(N, 3, side, side) float32: scaled to a square (bicubic), colours 0 to 1 less their mean, over their spread.

    ValueError where Pillow is missing or a file is no picture.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ValueError('pictures need Pillow: pip install "luthier[pictures]"') from None
    found = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                square = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        except UnidentifiedImageError:
            raise ValueError(f"{path} is no picture that Pillow knows") from None
        found.append(torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(side, side, 3))
    mean, spread = (torch.tensor(values).view(3, 1, 1) for values in colours)
    return (torch.stack(found).permute(0, 3, 1, 2).float() / 255 - mean) / spread
