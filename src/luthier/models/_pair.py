"""Heads for tasks on an encoder-decoder. Lewis et al. 2019, arXiv:1910.13461, section 3: the last state of the decoder stands for the text.

As transformers has them for BART and T5: tanh(dense x) of a sentence's state, with dropout before and behind; one Linear for tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from luthier.core.heads import SENTENCE, Pooler
from luthier.core.names import Name, linear


def parts(width: int, dropout: float) -> dict[str, Any]:
    """The net's arguments for them."""
    poolers: dict[str, Callable[[], Pooler]] = dict.fromkeys(SENTENCE, partial(Pooler, width, dropout=dropout))
    return {"label_dropout": dropout, "poolers": poolers}


def names(heads: dict[str, int]) -> dict[str, Name]:
    table: dict[str, Name] = {}
    for kind in heads.keys() & SENTENCE:
        table |= linear(f"heads.{kind}.pooler.dense", "classification_head.dense", True)
        table |= linear(f"heads.{kind}.out", "classification_head.out_proj", True)
    for kind, path in {"tag": "classifier", "spans": "qa_outputs"}.items():
        table |= linear(f"heads.{kind}.out", path, True) if kind in heads else {}
    return table
