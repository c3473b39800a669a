"""Extractive question answering: where the answer begins and ends in a context. Devlin et al. 2018, arXiv:1810.04805, sections 4.2 and 4.3.

P(start = i) = softmax_i(S h_i) over a document, likewise the end. A context too long for one document is read in overlapping windows;
where a window does not hold the whole answer, both point to the blank position: [CLS], in a decoder the last token.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import torch
from tokenizers import Encoding
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from luthier.data.stream import Sample
from luthier.objectives._batch import Batch, Example, Reading, Term, quoted, wide
from luthier.objectives._objective import Objective
from luthier.sources.model import Model


@dataclass(frozen=True)
class _Window:
    """Where a piece of context stands in its document, and which characters its tokens are."""

    blank: int
    start: int
    offsets: list[tuple[int, int]]


@dataclass(frozen=True)
class Extract(Objective):
    """The windows of a row stay together; the prediction is the best span over all of them, as text of the context."""

    overlap: int = 128  # tokens that a window shares with the one before
    question: int = 64  # tokens of a question at most
    longest: int = 30  # tokens of a predicted answer at most
    unanswerable: bool = False  # whether the prediction may be "": when the blank position scores higher than every span
    margin: float = 0.0  # by how much a span must beat the blank position

    needs: ClassVar[tuple[str, ...]] = ("question", "context", "answers")
    encodings: ClassVar[bool] = True
    predicts: ClassVar[str] = "spans"
    learns: ClassVar[str] = "a context"
    stack: ClassVar[str] = "decoder"
    verified: ClassVar[str] = "transformers 5.23 BertForQuestionAnswering's loss"

    def heads(self) -> dict[str, int]:
        return {"spans": 2}

    def read(self, sample: Sample, model: Model) -> Reading:
        question, context, _ = self.fields(sample)
        return Reading(sample, [question, context])

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        question, context = reading.codes
        if not context.ids:
            return []
        windows = self._cut(question, context, model, length)
        answers = _answers(reading)
        documents, notes, labels = [], [], []
        for code in windows:
            ids, types = _join(question, code, model)
            blank = 0 if model.net.pool == "first" else len(ids) - 1
            notes.append(_Window(blank, len(ids) - _tail(model) - len(code), code.offsets))
            documents.append((ids, types))
            labels += _place(notes[-1], answers)
        return [
            Example(
                ids=list(chain.from_iterable(ids for ids, _ in documents)),
                at={},
                labels={"spans": labels},
                types=list(chain.from_iterable(types for _, types in documents)),
                lengths=tuple(len(ids) for ids, _ in documents),
                reference=[text for text, _ in answers],
                note=(reading.texts[1], notes),
            )
        ]

    def _cut(self, question: Encoding, context: Encoding, model: Model, length: int) -> list[Encoding]:
        question.truncate(self.question)
        empty = len(_join(question, Encoding.merge([], False), model)[0])
        room = length - empty
        if room < 1:
            raise ValueError(f"data.length={length} leaves no room for a context beside a question of {len(question)} tokens")
        context.truncate(room, min(self.overlap, room // 2))
        return [context, *context.overflowing]

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        score_WT2, label_W2 = _scores(hidden, heads, batch), batch.labels["spans"].view(-1, 2)
        total = F.cross_entropy(score_WT2.mT.flatten(0, 1), label_W2.flatten(), reduction="sum")
        return {"spans": Term(total, label_W2.numel())}

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[str]:
        scores = iter(_scores(hidden, heads, batch).detach().float().cpu())
        return [self._best(example.note, [next(scores) for _ in example.documents]) for example in batch.examples]

    def _best(self, note: Any, scores: list[Tensor]) -> str:
        context, windows = note
        best, answer, blank = -float("inf"), "", float("inf")
        for window, score_T2 in zip(windows, scores, strict=True):
            blank = min(blank, float(score_T2[window.blank].sum()))
            value, first, last = self._span(score_T2[window.start : window.start + len(window.offsets)])
            if value > best:
                best, answer = value, context[window.offsets[first][0] : window.offsets[last][1]]
        return "" if self.unanswerable and best <= blank + self.margin else answer

    def _span(self, score_C2: Tensor) -> tuple[float, int, int]:
        """The best start and end within `longest` tokens of each other."""
        total_CC = score_C2[:, :1] + score_C2[:, 1]
        allowed = torch.ones_like(total_CC, dtype=torch.bool).triu().tril(self.longest - 1)
        value, place = total_CC.masked_fill(~allowed, -torch.inf).flatten().max(0)
        return float(value), int(place) // len(score_C2), int(place) % len(score_C2)


def _scores(hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> Tensor:
    """(documents, longest, 2); -inf behind the end of a document."""
    parts = wide(heads["spans"](hidden[0])).split(list(batch.lengths))
    return pad_sequence(list(parts), batch_first=True, padding_value=-torch.inf)


def _answers(reading: Reading) -> list[tuple[str, int]]:
    """(text, first character) of each accepted answer; none for a question without one."""
    context, found = reading.texts[1], []
    for answer in reading.sample.row["answers"]:
        text, start = answer["text"], answer["start"]
        if context[start : start + len(text)] != text:
            raise ValueError(
                f"the answer {text!r} does not stand at character {start} of its context, where there is "
                f"{context[start : start + len(text)]!r}: {quoted(reading.sample)}"
            )
        found.append((text, start))
    return found


def _place(window: _Window, answers: list[tuple[str, int]]) -> list[int]:
    """Positions of the first and last token of the first answer, if it lies in the window."""
    for answer, start in answers[:1]:
        text = answer.strip()
        start += len(answer) - len(answer.lstrip())
        touching = [i for i, (a, b) in enumerate(window.offsets) if a < start + len(text) and b > start]
        if touching and window.offsets[0][0] <= start and start + len(text) <= window.offsets[-1][1]:
            return [window.start + touching[0], window.start + touching[-1]]
    return [window.blank, window.blank]


def _join(question: Encoding, context: Encoding, model: Model) -> tuple[list[int], list[int]]:
    assert model.tokenizer is not None
    return model.tokenizer.join(question, context)


def _tail(model: Model) -> int:
    """Special tokens behind the context."""
    assert model.tokenizer is not None
    return int(model.tokenizer.cls is not None or model.tokenizer.eos is not None)
