"""How a conversation is written for a model, and which characters of it the assistant wrote.

The spans are found by position. Each assistant text is rendered between two marks that occur nowhere else; taking the marks out must give
the plain rendering, so neither an assistant that quotes the end-of-turn marker nor one that imitates another role can move them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import jinja2
from jinja2.exceptions import SecurityError

from luthier.data.plain import PLAIN
from luthier.data.sandbox import compiled
from luthier.data.tokenizer import Tokenizer

Message = Mapping[str, str]
Spans = list[tuple[int, int]]
MARKS = ("\ue0f1\ue0f3", "\ue0f2\ue0f4")  # private-use characters; lengthened until no message holds them


@dataclass(frozen=True)
class Template:
    """A chat template. stop: strings at which generation ends, beside the model's end token; specials: {"eos_token": "</s>", ...}."""

    name: str
    source: str
    stop: tuple[str, ...] = ()
    specials: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        compiled(self.source)

    def render(self, messages: Sequence[Message], generation: bool = False) -> str:
        """The conversation as text; with generation the header of the answer to come behind it."""
        return self._run(messages, generation, None)

    def spans(self, messages: Sequence[Message]) -> tuple[str, Spans]:
        """The text, and the ranges of characters to learn: each assistant text with the end-of-turn behind it."""
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise ValueError("the conversation has no assistant turn, so there is nothing to learn from it")
        text = self.render(messages)
        spans = self._as_planned(messages, turns, text) or self._measured(messages, turns, text)
        return text, [(start, end + self._ending(text, start, end)) for start, end in spans]

    @cached_property
    def end_of_turn(self) -> str:
        """What the template writes behind every assistant text, "" if nothing: found by rendering one conversation of two turns."""
        first, second = "\ue0f51\ue0f5", "\ue0f52\ue0f5"
        ask, again = {"role": "user", "content": "\ue0f6"}, {"role": "user", "content": "\ue0f7"}
        try:
            answers = [{"role": "assistant", "content": content} for content in (first, second)]
            text = self.render([ask, answers[0], again, answers[1]])
        except ValueError:  # a template for one exchange only
            text = self.render([ask, {"role": "assistant", "content": second}])
            return text.partition(second)[2].rstrip() or text.partition(second)[2]
        between, last = text.partition(first)[2].partition("\ue0f7")[0], text.partition(second)[2]
        common = _common(between, last)
        return common.rstrip() or common

    def fingerprint(self) -> str:
        """SHA-256 of what decides the text: source, special tokens, stop strings."""
        return hashlib.sha256(json.dumps([self.source, self.specials, self.stop], sort_keys=True).encode()).hexdigest()

    def _run(self, messages: Sequence[Message], generation: bool, marks: tuple[str, str] | None) -> str:
        values = {"tools": None, "documents": None, "generation_marks": marks, **self.specials}
        try:
            return compiled(self.source).render(messages=messages, add_generation_prompt=generation, **values)
        except SecurityError as error:
            raise ValueError(f"chat template {self.name!r} was refused: {error}; use a template from a source you trust") from error
        except jinja2.TemplateError as error:
            raise ValueError(f"chat template {self.name!r} does not take this conversation: {error}") from error
        except (TypeError, AttributeError, KeyError, ArithmeticError, IndexError, ValueError, MemoryError, RecursionError) as error:
            raise ValueError(f"chat template {self.name!r} failed: {type(error).__name__}: {error}") from error

    def _measured(self, messages: Sequence[Message], turns: list[int], text: str) -> Spans:
        marks = _marks(text)
        if "endgeneration" in self.source:
            return _take_out(self._run(messages, False, marks), marks, text) or self._refuse(turns)
        return self._between_marks(messages, turns, text, marks) or self._by_prefixes(messages, turns, text)

    def _as_planned(self, messages: Sequence[Message], turns: list[int], text: str) -> Spans | None:
        """The quick way: what the template writes between the contents of these roles, if that explains the whole text."""
        roles = tuple(message["role"] for message in messages)
        if roles not in self._plans:
            self._plans[roles] = self._plan(roles)
        plan = self._plans[roles]
        if plan is None:
            return None
        contents = [message["content"] for message in messages]
        if plan[0] + "".join([said + rest for said, rest in zip(contents, plan[1:], strict=True)]) != text:
            return None
        spans, at = [], len(plan[0])
        for i, content in enumerate(contents):
            if i in turns:
                spans.append((at, at + len(content)))
            at += len(content) + len(plan[i + 1])
        return spans

    def _plan(self, roles: tuple[str, ...]) -> list[str] | None:
        """The texts before, between and behind the contents; None where the template does more than put contents in their places."""
        if "endgeneration" in self.source:  # its author said what is learnt, which may be more than the content
            return None
        names = [f"\ue0f8{i}\ue0f9" for i in range(len(roles))]
        try:
            text = self.render([{"role": role, "content": name} for role, name in zip(roles, names, strict=True)])
        except ValueError:
            return None
        plan = []
        for name in names:
            before, found, text = text.partition(name)
            if not found:
                return None
            plan.append(before)
        return [*plan, text]

    @cached_property
    def _plans(self) -> dict[tuple[str, ...], list[str] | None]:
        return {}

    def _between_marks(self, messages: Sequence[Message], turns: list[int], text: str, marks: tuple[str, str]) -> Spans | None:
        """Marks around each whole text, or, where the template strips the text's ends, around what it leaves."""
        for around in (_whole, _core):
            marked = [dict(message) for message in messages]
            for i in turns:
                marked[i]["content"] = around(messages[i]["content"], marks)
            spans = _take_out(self._run(marked, False, None), marks, text)
            if spans is not None and len(spans) == len(turns):
                return spans
        return None

    def _by_prefixes(self, messages: Sequence[Message], turns: list[int], text: str) -> Spans:
        """For templates that rewrite a text: what stands between the answer's header and the next turn."""
        spans = []
        for i in turns:
            try:
                before, after = self.render(messages[:i], generation=True), self.render(messages[: i + 1])
            except ValueError:
                self._refuse([i])
            if not (text.startswith(after) and after.startswith(before)):
                self._refuse([i])
            said = after[len(before) :].rstrip()
            spans.append((len(before), len(before) + len(said.removesuffix(self.end_of_turn))))
        return spans

    def _refuse(self, turns: list[int]) -> Spans:
        numbers = ", ".join(str(i + 1) for i in turns)
        raise ValueError(
            f"chat template {self.name!r} rewrites message {numbers} of the conversation, so what the assistant said cannot be found in "
            "the text; use another template, or put {% generation %} ... {% endgeneration %} around the answer in this one"
        )

    def _ending(self, text: str, start: int, at: int) -> int:
        """Length of the end-of-turn that stands behind this span and is not yet part of it."""
        if self.end_of_turn and text.endswith(self.end_of_turn, start, at) and "endgeneration" in self.source:
            return 0
        for ending in (self.end_of_turn, *self.stop):
            if ending and text.startswith(ending, at):
                return len(ending)
        return 0


def named(name: str, specials: Mapping[str, str] | None = None) -> Template:
    """A built-in plain template (human_assistant, alpaca, vicuna, baichuan, chatglm)."""
    if name not in PLAIN:
        near = get_close_matches(name, PLAIN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(PLAIN)}, or give a file of Jinja"
        raise ValueError(f"no template called {name!r}; {hint}")
    return Template(name, *PLAIN[name], specials=dict(specials or {}))


def choose(setting: str | None, tokenizer: Tokenizer) -> Template | None:
    """The template of a run: a built-in one by name, a file of Jinja (name.jinja), or, for None, the one that came with the tokenizer."""
    specials = tokenizer.named()
    if setting is None:
        return None if tokenizer.chat_template is None else Template("the model's own", tokenizer.chat_template, specials=specials)
    if setting not in PLAIN and (Path(setting).suffix or Path(setting).exists()):
        return Template(setting, Path(setting).read_text(encoding="utf-8"), specials=specials)
    if not tokenizer.adds_bos:  # a plain text starts with bos only where the model is used to it
        specials.pop("bos_token", None)
    return named(setting, specials)


def _common(one: str, other: str) -> str:
    """What both begin with."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _marks(text: str) -> tuple[str, str]:
    before, after = MARKS
    while before in text or after in text:
        before, after = before * 2, after * 2
    return before, after


def _whole(content: str, marks: tuple[str, str]) -> str:
    return marks[0] + content + marks[1]


def _core(content: str, marks: tuple[str, str]) -> str:
    core = content.strip()
    lead = content[: len(content) - len(content.lstrip())] if core else content
    return lead + marks[0] + core + marks[1] + content[len(lead) + len(core) :]


def _take_out(marked: str, marks: tuple[str, str], plain: str) -> Spans | None:
    """Where the marks stood, if the text without them is the plain one."""
    pieces, spans, at = [], [], 0
    for part in marked.split(marks[0]):
        said, mark, rest = part.partition(marks[1])
        if bool(pieces) != bool(mark):  # a lost or doubled mark
            return None
        if mark:
            spans.append((at, at + len(said)))
        pieces.append(said + rest)
        at += len(said) + len(rest)
    return spans if "".join(pieces) == plain else None
