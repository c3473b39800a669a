"""Who sees whom when one net reads both ways, one way, or a source before its target. Dong et al. 2019, arXiv:1905.03197, section 2.2.

B documents, T longest, i query, j key, both counted over the document's real tokens
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Sight = Literal["bidirectional", "left_to_right", "right_to_left", "sequence_to_sequence"]


def visible(kinds: Sequence[Sight], real_BT: Tensor, sources: Sequence[int] | None = None) -> Tensor:
    """The `allow` of a batch whose rows are of these kinds: (B, 1, T, T) bool, True where the query sees the key.

    real: False for padding, on either side; it sees nothing and is not seen. sources: of a sequence_to_sequence row, how many of its first
    tokens are the source: all see it, and the rest sees itself from left to right. In a packed row each document is a row of `real`
    (see `rows`), and the result goes with its lengths.
    """
    if len(kinds) != len(real_BT):
        raise ValueError(f"{len(kinds)} kinds of masks for {len(real_BT)} rows; give one for each row, or for each packed document")
    wrong = sorted(set(kinds) - set(Sight.__args__))  # type: ignore[attr-defined]
    if wrong:
        raise ValueError(f"no mask called {wrong[0]!r}; there are {', '.join(Sight.__args__)}")  # type: ignore[attr-defined]
    if "sequence_to_sequence" in kinds and (sources is None or len(sources) != len(kinds)):
        raise ValueError("a sequence_to_sequence mask needs to know how long the source of each row is: sources=[...]")
    place_BT = real_BT.cumsum(-1) - 1
    i, j = place_BT[:, :, None], place_BT[:, None, :]
    source_B11 = torch.tensor(sources or [0] * len(kinds), device=real_BT.device)[:, None, None]
    rules = {
        "bidirectional": torch.ones_like(i == j),
        "left_to_right": j <= i,
        "right_to_left": j >= i,
        "sequence_to_sequence": (j < source_B11) | ((i >= source_B11) & (j <= i)),
    }
    allow_BTT = torch.stack([rules[kind][row] for row, kind in enumerate(kinds)])
    return (allow_BTT & real_BT[:, :, None] & real_BT[:, None, :])[:, None]


def rows(lengths: Sequence[int]) -> Tensor:
    """(documents, longest) bool: a packed row's documents as rows with padding behind."""
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
