"""The house stands: imports point strictly down, packages of one floor and plug-ins of one shelf do not know each other."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import luthier
from luthier import lookup

ROOT = Path(str(luthier.__file__)).parent
# Lowest first. Single files of the plan's floor 0 and floor 9 stand on steps of their own.
FLOORS = [
    {"declaration"}, {"lookup"}, {"schema"}, {"config"}, {"core"}, {"models", "anatomy"}, {"data"}, {"sources"},
    {"objectives", "tuning", "parallel"}, {"prompting", "alignment"}, {"evaluation"}, {"training", "planning"},
    {"run_file"}, {"doctor", "report_page", "drawing"}, {"report"}, {"run"}, {"api"}, {"comparing", "serving"}, {"__init__"}, {"cli"}, {"__main__"},
]  # fmt: skip
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def imported(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, parts below luthier) of every import of ours, those inside functions too; `package` is where the source lies."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ["luthier", *package[: len(package) - node.level + 1]] if node.level else []
            found = [[*start, *(node.module or "").split("."), alias.name] for alias in node.names]
        else:
            continue
        for parts in found:
            parts = [part for part in parts if part]
            if parts[0] == "luthier" and len(parts) > 1:
                yield node.lineno, tuple(parts[1:])


def broken(path: Path, source: str) -> Iterator[str]:
    """The rules that a file's imports break, in sentences."""
    inside = path.relative_to(ROOT).with_suffix("").parts
    here = inside[0]
    for line, parts in imported(source, inside[:-1]):
        there = parts[0]
        if there not in FLOOR or here not in FLOOR:
            yield f"{path}:{line}: {here} or {there} stands on no floor"
        elif there == here and here in lookup.SHELVES:
            met = {name for part in parts[1:2] for name in reached(ROOT / here, part)} - {inside[-1]}
            if met and not inside[-1].startswith("_"):
                yield f"{path}:{line}: the plug-in {inside[-1]} comes to {', '.join(met)}; shared parts lie in files with a leading _"
        elif there != here and FLOOR[there] >= FLOOR[here]:
            yield f"{path}:{line}: {here} imports {there}, which is not below it"


def reached(shelf: Path, name: str) -> set[str]:
    """The plug-ins that an import of a shelf's file brings along: itself, or those that a part imports in its turn."""
    path = shelf / f"{name}.py"
    if not name.startswith("_") or not path.is_file():
        return {name} if path.is_file() else set()
    further = [
        parts[1] for _, parts in imported(path.read_text(encoding="utf-8"), (shelf.name,)) if parts[0] == shelf.name and len(parts) > 1
    ]
    return {part for part in further if not part.startswith("_") and (shelf / f"{part}.py").is_file()}


def test_every_file_stands_on_a_floor():
    assert {path.relative_to(ROOT).with_suffix("").parts[0] for path in FILES} <= set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path):
    assert list(broken(path, path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "file, source",
    [
        ("core/loss.py", "from luthier.models.llama import Llama"),
        ("models/llama.py", "def f():\n    import luthier.anatomy.site"),
        ("tuning/lora.py", "from luthier.tuning.full import Full"),
        ("tuning/lora.py", "from .full import Full"),
        ("tuning/lora.py", "from luthier.tuning import _load"),
        ("tuning/lora.py", "from luthier.objectives import _batch"),
        ("evaluation/bleu.py", "from luthier import run"),
        ("data/read.py", "from luthier import load"),
    ],
)
def test_an_import_that_points_elsewhere_is_found(file: str, source: str):
    assert len(list(broken(ROOT / file, source))) == 1


def test_objectives_share_one_space_of_names():
    counts = Counter(name for shelf in lookup.OBJECTIVES for name in lookup.names(shelf))
    assert [name for name, count in counts.items() if count > 1] == []


def test_packages_import_nothing_by_themselves():
    for path in ROOT.glob("*/__init__.py"):
        assert [type(node).__name__ for node in ast.parse(path.read_text(encoding="utf-8")).body] in ([], ["Expr"]), path
