"""Pseudo-tokens anywhere in a template: "<p*3>{text}<p*3> It was" around the columns of a row. Liu et al. 2021, arXiv:2103.10385, figure 2.

The first of the row's columns that it names takes the whole template, and the others go into it; any objective then reads the row as it reads
others. Each mark is one token, and behind the tokenizer the n-th mark of a text becomes the id of the adapter's n-th virtual token.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import Any

from luthier.anatomy.virtual import Rows
from luthier.data.tokenizer import Tokenizer
from luthier.sources.model import Model

MARK = "\ufdd0"  # Unicode keeps it out of every text


@dataclass(frozen=True)
class Marks:
    """A template at work. id: of the mark; first: of the first virtual token."""

    template: str
    id: int
    first: int

    @cached_property
    def columns(self) -> tuple[str, ...]:
        return columns_of(self.template)

    def write(self, row: Mapping[str, Any], tokenizer: Tokenizer, room: int) -> dict[str, Any]:
        """The row with the template, filled in, in the place of the columns it names: `room` tokens at most."""
        wrong = [name for name in self.columns if not isinstance(row.get(name), str)]
        if wrong:
            there = ", ".join(name for name, value in row.items() if isinstance(value, str)) or "none"
            raise ValueError(f"the template of p_tuning names {', '.join(wrong)}, and this row's columns of text are {there}")
        first, *rest = (name for name in row if name in self.columns)
        return {name: value for name, value in row.items() if name not in rest} | {first: self._fitted(row, tokenizer, room)}

    def _fitted(self, row: Mapping[str, Any], tokenizer: Tokenizer, room: int) -> str:
        """What is too much is cut from the end of the longest column, never from the template; one that does not fit alone stays whole."""
        texts = {name: row[name] for name in self.columns}
        while True:
            filled = spread(self.template).format_map(texts)
            excess = len(tokenizer.encode(filled)) - room
            longest = max(texts, key=lambda name: len(texts[name]))
            places = tokenizer.inner.encode(texts[longest], add_special_tokens=False).offsets if excess > 0 else []
            if not 0 < excess < len(places):
                return filled
            end = min(places[-excess][0], len(texts[longest]) - 1)  # each turn at least one character
            texts[longest] = texts[longest][:end].rstrip()

    def place(self, ids: list[int], lengths: Sequence[int]) -> None:
        """Virtual ids in the place of the marks, in each document that has the template; `ids` is changed."""
        wanted, start, there = spread(self.template).count(MARK), 0, 0
        for length in lengths:
            places = [i for i in range(start, start + length) if ids[i] == self.id]
            if places and len(places) != wanted:
                cut = "data.length cuts the rest, or the objective hides some"
                raise ValueError(
                    f"a text of {length} tokens has {len(places)} of its template's {wanted} pseudo-tokens: {cut}; raise data.length"
                )
            for i, place in enumerate(places):
                ids[place] = self.first + i
            start, there = start + length, there + len(places)
        if not there:
            raise ValueError(
                f"the objective does not read {', '.join(self.columns)}, so no pseudo-token of p_tuning's template stands anywhere"
            )


def marks(model: Model, adapter: str = "") -> Marks | None:
    """The template of the adapters at work, or of the one that a row names; None without a template.

    ValueError where a text would be read both with a template and otherwise: it is made into tokens once.
    """
    if model.tokenizer is None or not model.anatomy.active:
        return None
    found: list[Rows | None] = []
    for running in model.running(adapter):
        with running:
            found += _with_template(model)
    first = found[0]
    if any(other is not first for other in found):
        told = " and ".join(dict.fromkeys("no template" if each is None else repr(each.template) for each in found))
        raise ValueError(
            f"adapters with {told} would read the same text, which is written in one way: let rows name their adapter "
            "(a column 'adapter' beside parallel), and stack no two templates"
        )
    return None if first is None else Marks(first.template, mark(model.tokenizer), first.first)


def check_prompts(model: Model) -> None:
    """Refuse prompts where a template is at work: its pseudo-tokens stand around a row's columns, and without them the adapter does nothing."""
    names = model.anatomy.active
    if any(model.anatomy.switch.named[name].passes for name in names if name in model.anatomy.switch.named):
        return  # several in parallel: none of them answers before one is chosen
    if (found := _with_template(model)[0]) is not None:
        raise ValueError(
            f"p_tuning's template {found.template!r} stands around the columns of rows, and a prompt has none: measure rows "
            "(luthier evaluate --data), or tune with place: front for prompts"
        )


def _with_template(model: Model) -> list[Rows] | list[None]:
    """Those at work that have one."""
    found = [part for here in model.anatomy.at_work() for part in here if isinstance(part, Rows) and part.template]
    return found or [None]


def mark(tokenizer: Tokenizer) -> int:
    """The id of the mark, which the tokenizer from now on keeps apart from its neighbours."""
    if tokenizer.id(MARK) is None:
        tokenizer.add([MARK], special=True)
    found = tokenizer.id(MARK)
    assert found is not None
    return found


def spread(template: str) -> str:
    """The template with a mark for each pseudo-token."""
    return re.sub(r"<p(?:\*(\d+))?>", lambda found: MARK * int(found[1] or 1), template)


def count(template: str) -> int:
    """Its pseudo-tokens. ValueError for what is no template."""
    try:
        columns = columns_of(template)
    except ValueError as error:
        raise ValueError(
            f"p_tuning's template {template!r} cannot be read ({error}): braces go in pairs around the name of a column"
        ) from None
    found = spread(template).count(MARK)
    if not found or not columns or not all(name.isidentifier() for name in columns):
        raise ValueError(f'a template of p_tuning has pseudo-tokens and the row\'s columns in it, as "<p*3>{{text}}<p>", not {template!r}')
    return found


def columns_of(template: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name is not None))
