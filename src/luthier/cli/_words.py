"""Words of the command line to values, for the plain types: str, int, float, bool, Path and lists of them.

typer's own conversion imports pydantic, 0.1 s of CPU, which `luthier list` and a configuration error need not pay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.core import TyperCommand

KINDS = {str: "text", int: "a whole number", float: "a number", Path: "a path", bool: "a flag"}
LIMITS = ("min", "max", "parser", "exists", "resolve_path")  # what typer checks beyond the type


@dataclass(frozen=True)
class Plain:
    """What typer asks to convert one parameter's words."""

    kind: Callable[[Any], Any]
    what: str
    many: bool

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if value is None:
            return () if self.many else None
        try:
            return [self.kind(word) for word in value] if self.many else self.kind(value)
        except ValueError:
            ctx.fail(f"{param.name} must be {self.what}, got {value!r}")


class Verb(TyperCommand):
    """A command that converts plain words itself."""

    def get_params(self, ctx: Any) -> list[Any]:
        return plainly(super().get_params(ctx), self.callback)


def plainly(params: list[Any], function: Callable[..., Any] | None) -> list[Any]:
    """The parameters of `function`, those of plain types with our conversion; the others keep typer's."""
    hints = {"help": bool} | (get_type_hints(function, include_extras=True) if function else {})
    for param in params:
        plain = conversion(hints.get(param.name))
        if plain is not None:
            param._runtime_param = plain
    return params


def conversion(hint: Any) -> Plain | None:
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
        if any(vars(note).get(limit) not in (None, False) for note in notes for limit in LIMITS):
            return None
    inner = [kind for kind in get_args(hint) if kind is not NoneType]
    if NoneType in get_args(hint) and len(inner) == 1:  # `list[str] | None`
        hint = inner[0]
    many = get_origin(hint) is list
    kind = get_args(hint)[0] if many else hint
    return Plain(kind, KINDS[kind], many) if kind in KINDS else None
