"""One text or two as a document with its special tokens, and the position whose state stands for the whole."""

from typing import Any

from tokenizers import Encoding

from luthier.data.tokenizer import Tokenizer
from luthier.objectives._batch import Example
from luthier.sources.model import Model


def frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens before and behind a single text."""
    if tokenizer.cls is not None:
        return [tokenizer.cls], [] if tokenizer.sep is None else [tokenizer.sep]
    start = [tokenizer.bos] if tokenizer.bos is not None and tokenizer.adds_bos else []
    return start, [] if tokenizer.eos is None else [tokenizer.eos]


def sentence(term: str, label: Any, texts: list[Encoding], model: Model, length: int) -> Example:
    """One or two texts as one document, read at the position the model's sentence heads are made for."""
    assert model.tokenizer is not None
    ids, types = model.tokenizer.join(*texts, length=length)
    at = 0 if model.net.pool == "first" else len(ids) - 1
    return Example(ids, {term: [at]}, {term: [label]}, types if any(types) else None)
