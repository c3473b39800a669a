"""What the values of a file must look like, read from the dataclasses' source; `mistakes` finds everything that does not fit.

Types are read as `ast` expressions, so a plug-in's section is checked without importing the plug-in. An address is the path
to a value: ("tuning", 0, "rank"). A type that is not known here accepts anything: pydantic judges when the run is built.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.declaration import is_dataclass_node, parse, read
from luthier.lookup import OBJECTIVES, ROOT, Shelf, find, names, shelf_of, suggest

Address = tuple[str | int, ...]
PLAIN = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "Path": "a path", "None": "nothing"}
LISTS = ("tuple", "list", "Sequence", "Iterable", "set", "frozenset")
MAPPINGS = ("dict", "Mapping")


@dataclass(frozen=True)
class Mistake:
    """A sentence about the value at an address; `key` where the key itself is wrong."""

    address: Address
    sentence: str


def mistakes(value: Any, file: Path, cls: str, at: Address = ()) -> Iterator[Mistake]:
    """What in a section does not fit the dataclass `cls` of `file`."""
    yield from section(value, file, cls, at, ())


def section(value: Any, file: Path, cls: str | None, at: Address, extra: Sequence[str]) -> Iterator[Mistake]:
    if not isinstance(value, Mapping):
        yield Mistake(at, f"{spell(at)} must be a section (key: value), got {show(value)}")
        return
    fields = {field.name: field for field in read(file, cls).fields}
    for key in value:
        if key not in fields and key not in extra:
            place = f" in {spell(at)}" if at else ""
            yield Mistake((*at, key), f"unknown key {key!r}{place}{suggest(str(key), [*fields, *extra])}")
    for name, field in fields.items():
        if name in value:
            yield from misfit(value[name], ast.parse(field.type, mode="eval").body, file, (*at, name))
        elif field.required:
            yield Mistake(at, f"{spell((*at, name))} is missing; it must be {expected(ast.parse(field.type, mode='eval').body, file)}")


# Types


def misfit(value: Any, kind: ast.expr, file: Path, at: Address) -> Iterator[Mistake]:
    """What in `value` does not fit the type `kind`, an expression in `file`."""
    match kind:
        case ast.Constant(value=str(quoted)):
            yield from misfit(value, ast.parse(quoted, mode="eval").body, file, at)
        case ast.BinOp() | ast.Subscript(value=ast.Name(id="Optional" | "Union")):
            yield from misfit_any(value, alternatives(kind), file, at)
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *notes])):
            shelf = next(
                (read_shelf(note) for note in notes if isinstance(note, ast.Call) and ast.unparse(note.func).endswith("Shelf")), None
            )
            yield from misfit(value, inner, file, at) if shelf is None else on_shelf(value, shelf, at)
        case ast.Subscript(value=ast.Name(id="Literal")):
            choices = literals(kind)
            if value not in choices or isinstance(value, bool) != any(choice is value for choice in choices if isinstance(choice, bool)):
                close = suggest(value, [str(c) for c in choices]) if isinstance(value, str) else ""
                yield wrong(value, kind, file, at, close if "did you mean" in close else "")
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in LISTS:
            yield from misfit_list(value, kind, inner, file, at)
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Tuple(elts=[_, inner])) if name in MAPPINGS:
            if not isinstance(value, Mapping):
                yield wrong(value, kind, file, at)
                return
            for key, item in value.items():
                yield from misfit(item, inner, file, (*at, key))
        case ast.Name(id=name) | ast.Constant(value=None as name):
            yield from misfit_name(value, kind, str(name), file, at)


def misfit_any(value: Any, kinds: list[ast.expr], file: Path, at: Address) -> Iterator[Mistake]:
    """Fits one of several types; where none fits, the alternative of the value's own shape tells what is wrong."""
    found = [list(misfit(value, kind, file, at)) for kind in kinds]
    if not all(found):
        return
    inside = [errors for errors in found if any(len(error.address) > len(at) for error in errors)]
    if inside:
        yield from min(inside, key=len)
    else:
        spelt = " or ".join(expected(kind, file) for kind in kinds)
        yield Mistake(at, f"{spell(at)} must be {spelt}, got {show(value)}")


def misfit_list(value: Any, kind: ast.expr, inner: ast.expr, file: Path, at: Address) -> Iterator[Mistake]:
    if not isinstance(value, list | tuple):
        yield wrong(value, kind, file, at, f"; write [{value}]" if isinstance(value, str | int | float) else "")
        return
    kinds = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    fixed = isinstance(inner, ast.Tuple) and not (isinstance(kinds[-1], ast.Constant) and kinds[-1].value is Ellipsis)
    if fixed and len(value) != len(kinds):
        yield Mistake(at, f"{spell(at)} must have {len(kinds)} entries, got {len(value)}")
        return
    for i, item in enumerate(value):
        yield from misfit(item, kinds[i] if fixed else kinds[0], file, (*at, i))


def misfit_name(value: Any, kind: ast.expr, name: str, file: Path, at: Address) -> Iterator[Mistake]:
    if name in PLAIN:
        if not fits_plain(value, name):
            yield wrong(value, kind, file, at)
    elif name in LISTS or name in MAPPINGS:
        if not isinstance(value, list | tuple if name in LISTS else Mapping):
            yield wrong(value, kind, file, at)
    elif (there := resolve(name, file)) is not None:
        node, home = there
        if isinstance(node, ast.ClassDef):
            if is_dataclass_node(node):
                yield from section(value, home, node.name, at, ())
        elif isinstance(node, ast.expr):
            yield from misfit(value, node, home, at)


def fits_plain(value: Any, name: str) -> bool:
    """Numbers may be written as text ("1e-4") and whole numbers as 1e3; true is no number, 1 is not true."""
    match name:
        case "None":
            return value is None
        case "bool":
            return isinstance(value, bool)
        case "str" | "Path":
            return isinstance(value, str | Path)
        case "float" | "int":
            try:
                number = None if isinstance(value, bool) or value is None or isinstance(value, list | Mapping) else float(value)
            except ValueError:
                return False
            return number is not None and (name == "float" or number.is_integer())
    return True


def resolve(name: str, file: Path) -> tuple[ast.AST, Path] | None:
    """Where a name that `file` uses as a type is defined: (class or aliased type, file); None when it is not ours."""
    for node in parse(file).body:
        match node:
            case ast.ClassDef(name=found) if found == name:
                return node, file
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return value, file
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == name:
                return value, file
            case ast.ImportFrom(module=str(module), names=imported) if module.split(".")[0] == "luthier":
                for alias in imported:
                    if (alias.asname or alias.name) == name:
                        home = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
                        return resolve(alias.name, home) if home.is_file() else None
    return None


# Sections of plug-ins


def on_shelf(value: Any, shelf: Shelf, at: Address) -> Iterator[Mistake]:
    """What is wrong in the section of a plug-in: its name first, then its fields, from its own file."""
    if isinstance(value, list) and shelf.many:
        for i, item in enumerate(value):
            yield from on_shelf(item, shelf, (*at, i))
    elif isinstance(value, str):
        if shelf.bare:
            yield from named(value, shelf, {}, at, at)
    elif not isinstance(value, Mapping):
        yield Mistake(at, f"{spell(at)} must be a section with {shelf.key!r}, got {show(value)}")
    elif shelf.key in value:
        rest = {key: item for key, item in value.items() if key != shelf.key}
        yield from named(value[shelf.key], shelf, rest, at, (*at, shelf.key))
    elif node := next((key for key in value if key in nodes(shelf)), None):
        yield from section(value, ROOT / shelf.nest, nodes(shelf)[node], at, ())
    else:
        typo = next((key for key in value if "did you mean" in suggest(str(key), [shelf.key])), None)
        nested = next((key for key in value if "did you mean" in suggest(str(key), nodes(shelf))), None)
        if nested and not typo:
            yield Mistake((*at, nested), f"unknown key {nested!r} in {spell(at)}{suggest(str(nested), nodes(shelf))}")
            return
        others = f" (or one of {', '.join(nodes(shelf))}, with several in it)" if shelf.nest else ""
        yield Mistake((*at, typo) if typo else at, f"{spell(at)} needs the key {shelf.key!r}: {', '.join(known_names(shelf))}{others}")


def nodes(shelf: Shelf) -> dict[str, str]:
    """Keys that hold several sections, and the class of such a section."""
    if not shelf.nest:
        return {}
    classes = [node.name for node in parse(ROOT / shelf.nest).body if isinstance(node, ast.ClassDef) and is_dataclass_node(node)]
    return {name.lower(): name for name in classes}


def named(name: Any, shelf: Shelf, rest: dict[Any, Any], at: Address, at_name: Address) -> Iterator[Mistake]:
    try:
        there = shelf_of(shelf.name, str(name))
    except ValueError as error:
        yield Mistake(at_name, f"{spell(at_name)}: {error}")
        return
    yield from section(rest, find(there, str(name)), None, at, shelf.extra)


def known_names(shelf: Shelf) -> list[str]:
    return sorted(name for there in (OBJECTIVES if shelf.name == "objectives" else (shelf.name,)) for name in names(there))


def read_shelf(call: ast.Call) -> Shelf:
    """`Shelf("objectives", key="arch")`, as it stands in an annotation."""
    return Shelf(*(ast.literal_eval(a) for a in call.args), **{str(k.arg): ast.literal_eval(k.value) for k in call.keywords})


# Words


def wrong(value: Any, kind: ast.expr, file: Path, at: Address, hint: str = "") -> Mistake:
    return Mistake(at, f"{spell(at)} must be {expected(kind, file)}, got {show(value)}{hint}")


def expected(kind: ast.expr, file: Path) -> str:
    """A type in words: `tuple[str, ...] | None` is "a list (text) or nothing"."""
    match kind:
        case ast.BinOp() | ast.Subscript(value=ast.Name(id="Optional" | "Union")):
            return " or ".join(expected(part, file) for part in alternatives(kind))
        case ast.Subscript(value=ast.Name(id="Literal")):
            return "one of " + ", ".join(repr(choice) for choice in literals(kind))
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[inner, *_])):
            return expected(inner, file)
        case ast.Subscript(value=ast.Name(id=name), slice=inner) if name in LISTS:
            kinds = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return f"a list ({', '.join(expected(part, file) for part in kinds)})"
        case ast.Constant(value=value):
            return "..." if value is Ellipsis else PLAIN.get(str(value), str(value))
        case ast.Subscript(value=ast.Name(id=name)) | ast.Name(id=name):
            if name in PLAIN:
                return PLAIN[name]
            if name in LISTS:
                return "a list"
            there = resolve(name, file)
            if there is not None and not isinstance(there[0], ast.ClassDef) and isinstance(there[0], ast.expr):
                return expected(there[0], there[1])
            return "a section (key: value)"
    return ast.unparse(kind)


def alternatives(kind: ast.expr) -> list[ast.expr]:
    match kind:
        case ast.BinOp(left=left, right=right):
            return alternatives(left) + alternatives(right)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return [*alternatives(inner), ast.Constant(None)]
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=inner)):
            return [part for each in inner for part in alternatives(each)]
    return [kind]


def literals(kind: ast.Subscript) -> list[Any]:
    return [ast.literal_eval(part) for part in (kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice])]


def spell(at: Address) -> str:
    return ".".join(str(part) for part in at) or "the file"


def show(value: Any) -> str:
    if value is None:
        return "nothing"
    return "a section" if isinstance(value, Mapping) else repr(value)
