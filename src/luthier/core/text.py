"""The text at hand, for parts deep in a model that must know a token's place in it: set where the text enters a stack.

B rows, T tokens, virtual ones included
"""

from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Text:
    """place_BT: of each token in its text or document. real_BT: False for padding. lengths: of documents packed into one row."""

    place_BT: Tensor
    real_BT: Tensor | None = None
    lengths: tuple[int, ...] | None = None


class _AtHand:
    """A context variable, which no compiler takes into its graph: there nothing is kept, and who needs it is told."""

    def __init__(self) -> None:
        self._text: ContextVar[Text | None] = ContextVar("text", default=None)

    def set(self, text: Text) -> None:
        if not torch.compiler.is_compiling():
            self._text.set(text)

    def get(self) -> Text | None:
        if torch.compiler.is_compiling():
            raise RuntimeError("gates, splits and routes that look at a token's place in its text are not compiled; run the net as it is")
        return self._text.get()


TEXT = _AtHand()
