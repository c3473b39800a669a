"""YAML to frozen dataclasses, strictly: every mistake of a file at once, each with its line and a suggestion.

    run = config.load(Run, "run.yaml", ["training.rate=1e-4"])          # read, override, check, build

Numbers and truth values are read as YAML 1.2 has them: `1e-4` is a number, `no` and `12:30` are text, only true and false
are truth values. A key that stands twice is refused. Checking reads the source of the dataclasses (schema.py), so a file with
mistakes is answered without torch and without pydantic; building validates again, with pydantic.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import yaml

from luthier.lookup import lookup, suggest
from luthier.schema import Address, mistakes, show, spell

T = TypeVar("T")
INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan")
TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map"))
WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: value for value, spelt in ((True, "true True TRUE"), (False, "false False FALSE")) for word in spelt.split()
}


class RunFailed(Exception):
    """The run itself failed, not what the user wrote: NaN in the loss, no memory. Exit code 1."""


@dataclass
class Document:
    """The values of a YAML file and where each was written."""

    file: str
    values: Any
    places: dict[Address, int | str] = field(default_factory=dict)  # address -> line, or the override that set it

    def place(self, at: Address) -> int | str:
        """The line of a value, or of the section it should stand in; the override that set it."""
        return next((self.places[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self.places), 1)

    def where(self, at: Address) -> str:
        """The place of a value in words: run.yaml:12."""
        place = self.place(at)
        return f"{self.file}:{place}" if isinstance(place, int) else place


def load(kind: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """An instance of dataclass `kind` from a YAML file; ValueError with all mistakes, one a line."""
    document = read_yaml(path, overrides)
    check(document, kind)
    return build(kind, document.values, document.where)


def check(document: Document, kind: type) -> None:
    """Refuse a document that does not fit a dataclass, with every mistake."""
    source = inspect.getsourcefile(kind)
    assert source is not None
    found = sorted(mistakes(document.values, Path(source), kind.__name__), key=lambda each: by_line(document.place(each.address)))
    refuse(f"{document.where(each.address)}: {each.sentence}" for each in found)


def by_line(place: int | str) -> tuple[int, str]:
    return (place, "") if isinstance(place, int) else (10**9, place)  # overrides come after the file


def build(kind: type[T], values: Mapping[str, Any], where: Callable[[Address], str] | None = None) -> T:
    """A dataclass from plain values; ValueError names the field and what it takes."""
    from pydantic import TypeAdapter, ValidationError  # 0.1 s, and only needed when nothing else is wrong

    known = [each.name for each in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else list(values)
    refuse(f"unknown key {key!r} in {kind.__name__}{suggest(key, known)}" for key in values if key not in known)
    told = [(at, f"{spell(at)} must be a finite number, not {value}") for at, value in infinite(values)]
    refuse(f"{where(at)}: {text}" if where else text for at, text in told)
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        found = [(tuple(each["loc"]), complaint(dict(each))) for each in error.errors(include_url=False)]
    raise ValueError("\n".join(f"{where(at)}: {text}" if where else text for at, text in found))


def infinite(values: Any, at: Address = ()) -> Iterator[tuple[Address, float]]:
    """Where there is a number that is none, or has no end."""
    if isinstance(values, float) and not isfinite(values):
        yield at, values
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list | tuple) else ()
    for key, value in items:
        yield from infinite(value, (*at, key))


def complaint(error: Mapping[str, Any]) -> str:
    """A pydantic error in one sentence; what a dataclass itself raised, as it said it."""
    if error["type"] in ("value_error", "assertion_error"):
        return str(error["ctx"]["error"])
    name = spell(error["loc"])
    return f"{name} is missing" if error["type"] == "missing" else f"{name}: {error['msg']}, got {show(error['input'])}"


def build_plug_in(shelf: str, section: str | Mapping[str, Any], key: str = "kind") -> Any:
    """The plug-in of a section: "full", or {kind: lora, rank: 8}. This imports its file."""
    values = {key: section} if isinstance(section, str) else dict(section)
    if key not in values:
        raise ValueError(f"a section of {shelf} needs the key {key!r}, got {', '.join(map(str, values)) or 'nothing'}")
    name = values.pop(key)
    return build(lookup(shelf, name), values)


def dump(values: Any) -> str:
    """YAML of plain values or of a dataclass with every default filled in; `read_yaml` reads it back equal."""
    values = dataclasses.asdict(values) if dataclasses.is_dataclass(values) and not isinstance(values, type) else values
    return yaml.dump(plain(values), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=140)


def plain(value: Any) -> Any:
    """Tuples as lists, paths as text: what YAML and JSON can hold."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


# Reading


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> Document:
    """The file's values, with `a.b=c` set on top; ValueError names the line."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name the YAML file in it")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `luthier init {path}` writes an example")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    document = parse(text, str(path))
    if document.values is None:
        document.values = {}
    if not isinstance(document.values, dict):
        raise ValueError(f"{document.where(())}: the file must be sections (key: value)")
    for override in overrides:
        set_value(document, override)
    return document


def parse(text: str, file: str) -> Document:
    """The one value that a YAML text holds, whatever it is."""
    document = Document(file, {})
    try:
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{file}{line}: not YAML: {error.problem}{f' ({error.context})' if error.context else ''}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML: {error}") from None
    errors: list[str] = []
    document.values = None if node is None else construct(node, document, (), errors)
    refuse(errors)
    return document


class Loader(yaml.SafeLoader):
    """Composes nodes; what a plain scalar means is decided in `scalar`, not by YAML 1.1's rules."""

    yaml_implicit_resolvers = {}  # PyYAML's own class attribute


class Dumper(yaml.SafeDumper):
    """Writes text in quotes where the reader above, or YAML 1.1, would take it for something else."""


Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if isinstance(scalar(text), str) else '"')
)


def construct(node: yaml.Node, document: Document, at: Address, errors: list[str]) -> Any:
    """Values of a node; notes where each stands, collects duplicate keys and foreign tags."""
    line = node.start_mark.line + 1
    document.places.setdefault(at, line)
    if node.tag not in TAGS:
        errors.append(f"{document.file}:{line}: the tag {node.tag!r} is not allowed; write the value without it")
    if isinstance(node, yaml.SequenceNode):
        return [construct(item, document, (*at, i), errors) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return construct_mapping(node, document, at, errors)
    assert isinstance(node, yaml.ScalarNode)
    return node.value if node.style else scalar(node.value)  # a style is a kind of quotes


def construct_mapping(node: yaml.MappingNode, document: Document, at: Address, errors: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line, key = key_node.start_mark.line + 1, key_node.value
        if not isinstance(key_node, yaml.ScalarNode):
            errors.append(f"{document.file}:{line}: a key must be a plain word")
        elif key in values:
            first = document.places[(*at, key)]
            errors.append(f"{document.file}:{line}: {spell((*at, key))} stands twice, first in line {first}; remove one")
        else:
            document.places[(*at, key)] = line
            values[key] = construct(value_node, document, (*at, key), errors)
    return values


def scalar(text: str) -> Any:
    """What an unquoted word is: nothing, true, false, a number, or text."""
    if text in WORDS:
        return WORDS[text]
    if INT.fullmatch(text):
        return int(text.replace("_", ""), 0)
    if FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    return text


# Overrides


def set_value(document: Document, override: str) -> None:
    """Apply `training.rate=1e-4`, `data.path.0.weight=2` or `roles=[q, v]`: what stands behind `=` is read as YAML."""
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"override {override!r} must look like training.rate=1e-4")
    place = f"override {override}"
    put(document, name.strip().split("."), parse(text, place).values, place)


def put(document: Document, keys: Sequence[str], value: Any, place: str) -> None:
    """Sets a value, which from now on stands at `place`; sections on the way that are not there are made."""
    *sections, last = keys
    spot, at = document.values, ()
    for key in sections:
        index = step(spot, key, at, place)
        if isinstance(spot, dict) and spot.get(index) is None:
            spot[index] = {}
        spot, at = spot[index], (*at, index)
    index = step(spot, last, at, place, append=True)
    at = (*at, index)
    document.places = {old: there for old, there in document.places.items() if old[: len(at)] != at} | {at: place}
    if isinstance(spot, list) and index == len(spot):
        spot.append(value)
    else:
        spot[index] = value


def step(spot: Any, key: str, at: Address, place: str, append: bool = False) -> Any:
    """The key of a section, or the index into a list, that a part of an override's name stands for."""
    if isinstance(spot, dict):
        return key
    if not isinstance(spot, list):
        raise ValueError(
            f"{place}: {spell(at)} is {show(spot)}, not a section; write it as one, for example {spell(at)}={{kind: {spot}, {key}: ...}}"
        )
    if not key.isdigit() or int(key) >= len(spot) + append:
        raise ValueError(f"{place}: {spell(at)} is a list of {len(spot)}, counted from 0; it has no entry {key!r}")
    return int(key)


def refuse(errors: Iterable[str]) -> None:
    errors = list(dict.fromkeys(errors))
    if errors:
        raise ValueError("\n".join(errors))
