"""The text at hand, for parts deep in a model that must know a token's place in it: set where the text enters a stack.

B rows, T tokens, virtual ones included
"""

from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Text:
    """place_BT: of each token in its text or document. real_BT: False for padding. lengths: of documents packed into one row."""

    place_BT: Tensor
    real_BT: Tensor | None = None
    lengths: tuple[int, ...] | None = None


TEXT: ContextVar[Text | None] = ContextVar("text", default=None)
