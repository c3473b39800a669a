"""Chat templates are Jinja programs written by strangers: they run in a sandbox, with the functions Hugging Face templates expect.

The environment is the one transformers documents for chat templates: trim_blocks, lstrip_blocks, loop controls, `tojson`,
`raise_exception`, `strftime_now` and the `{% generation %}` block that marks what the assistant said.
"""

import json
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser

LONGEST = 10_000_000  # characters one expression may multiply up to


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Immutable arguments, no underscored attributes, no huge products."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (abs(left) < 1000 and abs(right) < 100):
            raise SecurityError(f"{left} ** {right} is too large a power for a chat template")
        if operator == "*" and any(isinstance(side, (str, list, tuple)) for side in (left, right)):
            text, times = (right, left) if isinstance(left, int) else (left, right)
            if len(text) * times > LONGEST:
                raise SecurityError(f"a chat template may not repeat {len(text)} items {times} times")
        return super().call_binop(context, operator, left, right)


class Namespace(jinja2.utils.Namespace):
    """A namespace that keeps a template away from Python's own attributes."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a chat template may not set the attribute {name!r}")
        super().__setitem__(name, value)


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: prints its body; between marks where the caller passes `generation_marks`."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("print", [jinja2.nodes.ContextReference()])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def print(self, context: jinja2.runtime.Context, caller: Callable[[], str]) -> str:
        before, after = context.get("generation_marks") or ("", "")
        return before + caller() + after


@lru_cache(maxsize=64)
def compiled(source: str) -> jinja2.Template:
    """The template ready to render; ValueError where it is not valid Jinja."""
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is not valid Jinja: {error.message} (its line {error.lineno})") from error


@lru_cache(maxsize=1)
def _environment() -> Sandbox:
    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    sandbox.filters["tojson"] = _tojson
    sandbox.globals["raise_exception"] = _raise
    sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    sandbox.globals["namespace"] = _namespace
    sandbox.globals["dict"] = lambda *pairs, **named: dict(*pairs, **named)
    return sandbox


def _namespace(*pairs: Any, **named: Any) -> Namespace:
    found = Namespace()
    for name, value in dict(*pairs, **named).items():
        found[name] = value
    return found


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
