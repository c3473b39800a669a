"""One text or two as a document with its special tokens, and the position whose state stands for the whole."""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import torch
from tokenizers import Encoding
from torch import Tensor

from luthier.data.tokenizer import Tokenizer
from luthier.objectives._batch import Batch, Example
from luthier.sources.model import Model


def framed(tokenizer: Tokenizer, length: int) -> tuple[list[int], list[int], int]:
    """The special tokens before and behind a single text, and how many of its own fit between them into a document of `length`."""
    start, end = tokenizer.frame()
    room = length - len(start) - len(end)
    if room < 1:
        raise ValueError(f"data.length={length} leaves no room for text beside the special tokens")
    return start, end, room


def sentence(term: str, label: Any, texts: list[Encoding], model: Model, length: int) -> Example:
    """One or two texts as one document, read at the position the model's sentence heads are made for."""
    assert model.tokenizer is not None
    ids, types = model.tokenizer.join(*texts, length=length)
    at = 0 if model.net.pool == "first" else len(ids) - 1
    return Example(ids, {term: [at]}, {term: [label]}, types if any(types) else None)


def together(term: str, label: Any, documents: Sequence[Example]) -> Example:
    """Documents that stay side by side and have one label between them: a question's choices, a pair in both orders."""
    if len(documents) == 1:
        return documents[0]
    lengths = tuple(len(document.ids) for document in documents)
    starts = accumulate(lengths, initial=0)
    typed = any(document.types for document in documents)
    return Example(
        ids=list(chain.from_iterable(document.ids for document in documents)),
        at={term: [start + document.at[term][0] for start, document in zip(starts, documents, strict=False)]},
        labels={term: [label]},
        types=list(chain.from_iterable(document.types or [0] * len(document.ids) for document in documents)) if typed else None,
        lengths=lengths,
    )


def added(hidden: Tensor, batch: Batch, term: str) -> Tensor:
    """(examples, D): each example's state, or the sum of its documents' states where it has several."""
    states = hidden[0, batch.at[term]]
    counts = [len(example.documents) for example in batch.examples]
    if len(states) == len(counts):
        return states
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(states.device)
    return states.new_zeros(len(counts), states.shape[1]).index_add(0, owner, states)
