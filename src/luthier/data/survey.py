"""Looking at data before a run: every row's problem, how long rows are, and how much of them is learnt within a length."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from luthier.data.illustrated import IMAGE
from luthier.data.stream import Part
from luthier.data.template import Template
from luthier.data.tokenizer import Ranges, Tokenizer

BATCH = 256


@dataclass
class Survey:
    """What was found. tokens and learnt hold one number per good row, counted within the length."""

    form: str
    rows: int = 0
    problems: list[str] = field(default_factory=list)  # one sentence per bad row, with file and line
    doubles: int = 0  # rows that stand in the file a second time
    tokens: list[int] = field(default_factory=list)  # before cutting
    learnt: list[int] = field(default_factory=list)
    cut: int = 0  # rows longer than the length
    barren: list[str] = field(default_factory=list)  # where nothing learnt is left within the length
    ended: int = 0  # rows of which the last end of turn is learnt

    def advice(self, length: int) -> list[str]:
        """Sentences on what would go wrong."""
        found = []
        if self.learnt and len(self.barren) == self.rows:
            found.append(
                f"every answer lies beyond data.length={length}; raise it to {int(np.percentile(self.tokens, 95))} to keep 95% of the rows whole"
            )
        elif self.barren:
            found.append(
                f"{len(self.barren)} rows have no answer within data.length={length} (first: {self.barren[0]}); raise it or shorten them"
            )
        if self.form in CONVERSATIONS and self.learnt and not self.ended:
            found.append(
                "no row teaches the end of a turn, so the model would not learn to stop; use another template or a larger data.length"
            )
        return found


CONVERSATIONS = ("messages", "sharegpt", "alpaca", "prompt")


def survey(part: Part, tokenizer: Tokenizer | None = None, template: Template | None = None, length: int = 1024) -> Survey:
    """Goes through all rows; without a tokenizer nothing is counted."""
    found = Survey(part.form, len(part.rows))
    good = list(_good(part, found))
    for start in range(0, len(good) if tokenizer else 0, BATCH):
        assert tokenizer is not None
        _count(good[start : start + BATCH], part, tokenizer, template, length, found)
    return found


def read_as(row: dict, template: Template | None) -> tuple[str, Ranges]:
    """The text a row is read as and the characters of it that are learnt; all of them where no template applies."""
    if "messages" in row:
        if template is None:
            raise ValueError("conversations need a chat template: name a model that has one, or a plain one (--template human_assistant)")
        return template.spans(row["messages"])
    if "image" in row:
        return f"{IMAGE}{first(row['text'])}", [(len(IMAGE), len(IMAGE) + len(first(row["text"])))]
    row = {key: value for key, value in row.items() if key != "adapter"}
    text = row["text"] if set(row) == {"text"} else "\n".join(f"{key}: {value}" for key, value in row.items())
    return text, [(0, len(text))]


def first(text: str | list[str]) -> str:
    """One caption, where a picture may have several."""
    return text if isinstance(text, str) else text[0]


def _good(part: Part, found: Survey) -> Iterator[tuple[int, dict]]:
    seen: set[int] = set()
    for index in range(len(part.rows)):
        try:
            row = part.look(index)
        except ValueError as error:
            found.problems.append(str(error))
            continue
        mark = hash(str(row))
        found.doubles += mark in seen
        seen.add(mark)
        yield index, row


def _count(rows: list[tuple[int, dict]], part: Part, tokenizer: Tokenizer, template: Template | None, length: int, found: Survey) -> None:
    read = []
    for index, row in rows:
        try:
            read.append((index, *read_as(row, template)))
        except ValueError as error:
            found.problems.append(f"{part.rows.where(index)}: {error}")
    coded = tokenizer.encode_spans([text for _, text, _ in read], [ranges for _, _, ranges in read])
    for (index, _, _), (ids, ranges) in zip(read, coded, strict=True):
        learnt = sum(max(0, min(stop, length) - first) for first, stop in ranges)
        found.tokens.append(len(ids))
        found.learnt.append(learnt)
        found.cut += len(ids) > length
        found.ended += bool(ranges) and ranges[-1][1] <= length and bool(template is None or template.end_of_turn)
        if not learnt:
            found.barren.append(part.rows.where(index))
