"""Packing: documents laid end to end in one row, kept apart by their lengths; nothing is padded and no document sees another.

Greedy and in stream order (next fit), so where the data stands is one cursor and the left-over that did not fit.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


def lay(documents: Sequence[Sequence[int]]) -> tuple[np.ndarray, tuple[int, ...]]:
    """ids (N,) int64 of all documents end to end, and their lengths; sum(lengths) == N."""
    lengths = tuple(len(document) for document in documents)
    ids = np.fromiter((id for document in documents for id in document), np.int64, sum(lengths))
    return ids, lengths


def positions(lengths: Sequence[int]) -> np.ndarray:
    """0, 1, 2 ... restarting in every document."""
    sizes = np.asarray(lengths, np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(sizes) else sizes
    return np.arange(sizes.sum()) - np.repeat(starts, sizes)


def mark(lengths: Sequence[int], spans: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """(N,) bool: True on the given token ranges of each document."""
    marked, start = np.zeros(sum(lengths), bool), 0
    for length, ranges in zip(lengths, spans, strict=True):
        for first, stop in ranges:
            marked[start + first : start + min(stop, length)] = True
        start += length
    return marked


def cut(documents: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """Ranges [start, stop) of documents, given by their lengths, that together stay within the budget; one too long stands alone."""
    ranges, start, used = [], 0, 0
    for i, length in enumerate(documents):
        if i > start and used + length > budget:
            ranges.append((start, i))
            start, used = i, 0
        used += length
    return ranges + ([(start, len(documents))] if len(documents) > start else [])


class Packed(Generic[T]):
    """Fills micro-batches up to a budget of tokens from an endless stream of documents, in their order."""

    def __init__(self, documents: Iterator[T], budget: int, length: Callable[[T], int] = len):  # type: ignore[assignment]
        self.documents, self.budget, self.length = documents, budget, length
        self.left_over: T | None = None

    def __iter__(self) -> Iterator[list[T]]:
        return self

    def __next__(self) -> list[T]:
        batch, used = [], 0
        while True:
            document = next(self.documents) if self.left_over is None else self.left_over
            self.left_over = None
            if batch and used + self.length(document) > self.budget:
                self.left_over = document
                return batch
            batch.append(document)
            used += self.length(document)
