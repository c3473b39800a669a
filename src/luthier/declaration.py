"""What a dataclass declares, read from its source with `ast`: nothing is imported, so reading a plug-in costs no torch.

A field's documentation is the comment behind it; a file's title and paper are the first line of its docstring.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Field:
    """One setting, as it stands in the source."""

    name: str
    type: str
    default: Any  # the literal; the source text where it is not one; None with `required`
    required: bool
    doc: str


@dataclass(frozen=True)
class Description:
    """What a file says about its dataclass, read without importing it."""

    name: str
    title: str
    paper: str
    file: Path
    cls: str
    fields: tuple[Field, ...]
    constants: dict[str, Any]  # literal class variables: presets, types, verified


@lru_cache
def parse(path: Path) -> ast.Module:
    """The file's tree, without what stands inside functions: to parse that is most of the work."""
    text = path.read_text(encoding="utf-8")
    try:
        return ast.parse(outline(text))
    except SyntaxError:  # a layout that the outline was not made for, or a mistake in the file
        pass
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{path}:{error.lineno}: not Python: {error.msg}") from None


def outline(text: str) -> str:
    """The source with empty functions. Lines stay where they were."""
    lines, depth = [], -1  # depth: of the function that is being left out
    for line in text.split("\n"):
        stripped = line.lstrip()
        indent = len(line) - len(stripped)
        if depth >= 0 and (not stripped or indent > depth or stripped.startswith(")")):
            lines.append("")
            continue
        depth = indent if stripped.startswith(("def ", "async def ")) else -1
        lines.append(f"{line[:indent]}def _(): ..." if depth >= 0 else line)
    return "\n".join(lines)


@lru_cache
def read(path: Path, cls: str | None = None) -> Description:
    """The description of class `cls`, or of the one public dataclass, in the file at `path`."""
    tree = parse(path)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if cls is None:
        node = only([node for node in classes if is_dataclass_node(node) and not node.name.startswith("_")], path)
    else:
        node = next(node for node in classes if node.name == cls)
    title, paper = heading(ast.get_docstring(tree) or "")
    lines = path.read_text(encoding="utf-8").splitlines()
    return Description(path.stem, title, paper, path, node.name, tuple(read_fields(node, lines)), constants(node))


def is_dataclass_node(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator).split("(")[0].split(".") for decorator in node.decorator_list)


def heading(docstring: str) -> tuple[str, str]:
    """Title and source of a file: its first line, cut where the citation begins."""
    first = docstring.partition("\n")[0].strip()
    sentences = re.split(r"(?<!\b[A-Z])(?<!\bal)\. (?=[A-Z])", first)  # not within "J. Hu" and "et al. NAACL 2021"
    cited = next((i for i, sentence in enumerate(sentences) if i and re.search(r"\b(19|20)\d\d\b|arXiv:", sentence)), None)
    if cited is not None:
        return ". ".join(sentences[:cited]), ". ".join(sentences[cited:]).removesuffix(".")
    elsewhere = re.search(r"arXiv:\d{4}\.\d{4,5}", docstring)
    return first.removesuffix("."), elsewhere[0] if elsewhere else ""


def read_fields(node: ast.ClassDef, lines: list[str]) -> Iterator[Field]:
    for i, item in enumerate(node.body):
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name) or is_class_variable(item):
            continue
        following = node.body[i + 1] if i + 1 < len(node.body) else None
        default, required = read_default(item.value)
        kind = item.annotation.id if isinstance(item.annotation, ast.Name) else ast.unparse(item.annotation)  # a name is most of them
        yield Field(item.target.id, kind, default, required, comment(item, lines) or text(following))


def is_class_variable(item: ast.AnnAssign) -> bool:
    outer = item.annotation.value if isinstance(item.annotation, ast.Subscript) else item.annotation
    return "ClassVar" in (getattr(outer, "id", ""), getattr(outer, "attr", ""))


def read_default(value: ast.expr | None) -> tuple[Any, bool]:
    """(default, required) of a field: `= 8`, `= field(default=8)`, `= field(default_factory=dict)`, or nothing."""
    if value is None:
        return None, True
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        options = {option.arg: option.value for option in value.keywords}
        if "default_factory" in options:
            return f"{ast.unparse(options['default_factory'])}()", False
        return read_default(options.get("default"))
    return literal(value), False


def literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        return ast.unparse(value)


def comment(item: ast.AnnAssign, lines: list[str]) -> str:
    """What stands behind a field on its line, after `#`."""
    rest = lines[(item.end_lineno or item.lineno) - 1].encode()[item.end_col_offset :].decode()
    return rest.partition("#")[2].strip()


def text(node: ast.stmt | None) -> str:
    return (
        node.value.value
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        else ""
    )


def constants(node: ast.ClassDef) -> dict[str, Any]:
    found = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and is_class_variable(item) and item.value is not None:
            try:
                found[item.target.id] = ast.literal_eval(item.value)
            except ValueError:
                continue  # computed: only an import would tell
    return found


def only(found: list[Any], path: Path) -> Any:
    if len(found) != 1:
        raise ValueError(f"{path}: a plug-in is one public dataclass, this file has {len(found)}; start the names of the others with _")
    return found[0]
