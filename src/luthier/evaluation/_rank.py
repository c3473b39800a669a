"""Correlation and ranks, for pearson and spearman."""

import math
from collections.abc import Sequence

import numpy as np

from luthier.evaluation._text import paired


def correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Pearson's r; NaN where x or y is constant."""
    pairs = np.asarray(paired(list(x), list(y)), dtype=np.float64)
    if (pairs == pairs[0]).all(axis=0).any():
        return math.nan
    centred = pairs - pairs.mean(axis=0)
    # scaled before the product, so that values near the ends of the float range do not vanish or overflow
    unit = centred / np.linalg.norm(centred, axis=0)
    return float(np.clip(unit[:, 0] @ unit[:, 1], -1.0, 1.0))


def ranks(values: Sequence[float]) -> np.ndarray:
    """1 for the smallest; equal values share the mean of the ranks they span."""
    _, which, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[which]
