"""The endless iterator of optimizer steps: tokenised ahead on a thread while the model works, resumed to the letter."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.data.stream import Stream
from luthier.objectives._batch import AT_ONCE, Batch, Example, Size, encode, pack
from luthier.sources.model import Model

if TYPE_CHECKING:
    from luthier.objectives._objective import Objective


@dataclass
class _Chunk:
    """Samples tokenised in one go, and where the stream stood before them."""

    start: dict
    examples: list[Example]
    seen: list[int]  # per example: samples of this chunk that are behind once it is taken
    skipped: list[int]  # per example: how many of those had nothing to learn
    samples: int
    empty: int


class Batches:
    """Endless iterator over optimizer steps; each is the list of its micro-batches.

    The sequence of examples depends on the stream alone, so the state is where the stream stood before the current chunk
    and how many examples were taken since: JSON, exact after any step.
    """

    def __init__(self, objective: "Objective", stream: Stream, model: Model, size: Size, length: int):
        objective.check(model)
        self.objective, self.stream, self.model, self.size, self.length = objective, stream, model, size, length
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._ahead: Future[_Chunk] | None = None
        self._chunk = _Chunk(stream.state(), [], [], [], 0, 0)
        self._taken = self._seen = self._skipped = 0  # examples of the chunk; samples before the chunk

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        chosen: list[Example] = []
        tokens = 0
        while not self.size.full(len(chosen), tokens, len(self._first().ids)):
            chosen.append(self._first())
            tokens += len(chosen[-1].ids)
            self._taken += 1
        return pack(chosen, self.size.micro_tokens, self.objective.together)

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return (self._seen + _until(self._chunk.seen, self._taken)) / self.stream.epoch_size

    @property
    def skipped(self) -> int:
        """Samples so far that had nothing to learn."""
        return self._skipped + _until(self._chunk.skipped, self._taken)

    def state(self) -> dict:
        return {"stream": self._chunk.start, "taken": self._taken, "seen": self._seen, "skipped": self._skipped}

    def restore(self, state: dict) -> None:
        if self._ahead is not None:
            self._ahead.exception()  # wait: the thread must have left the stream
            self._ahead = None
        self.stream.restore(state["stream"])
        self._chunk = _Chunk(state["stream"], [], [], [], 0, 0)
        self._taken, self._seen, self._skipped = state["taken"], state["seen"], state["skipped"]
        self._first()

    def _first(self) -> Example:
        """The next example, not taken yet."""
        barren = 0
        while self._taken >= len(self._chunk.examples):
            chunk = self._draw() if self._ahead is None else self._ahead.result()
            self._taken -= len(self._chunk.examples)
            self._seen += self._chunk.samples
            self._skipped += self._chunk.empty
            self._chunk = chunk
            self._ahead = self._thread.submit(self._draw)
            barren = 0 if chunk.examples else barren + chunk.samples
            if barren >= self.stream.epoch_size:
                raise ValueError(self.objective.nothing(self.stream.epoch_size, self.length))
        return self._chunk.examples[self._taken]

    def _draw(self) -> _Chunk:
        start = self.stream.state()
        samples = [next(self.stream) for _ in range(AT_ONCE)]
        found = encode(self.objective, samples, self.model, self.length)
        chunk = _Chunk(start, [], [], [], len(samples), sum(not examples for examples in found))
        empty = 0
        for i, examples in enumerate(found):
            if not examples:
                empty += 1
            chunk.examples += examples
            chunk.seen += [i] * len(examples)
            chunk.skipped += [empty] * len(examples)
            if chunk.examples:  # the last example of a sample also ends the empty ones that follow
                chunk.seen[-1], chunk.skipped[-1] = i + 1, empty
        return chunk


def _until(counts: list[int], taken: int) -> int:
    return counts[taken - 1] if taken else 0
