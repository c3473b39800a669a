"""Plug-ins by file name: `lookup("tuning", "lora")` is the one public dataclass of tuning/lora.py.

A shelf is a folder of plug-ins; a file with a leading `_` is a part, every other file is a plug-in. Nothing is registered.
`describe` reads what a plug-in is from its source with `ast`, so that listing and checking import nothing.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from luthier.declaration import Description, only, read

ROOT = Path(__file__).parent
SHELVES = ("models", "objectives", "tuning", "parallel", "prompting", "alignment", "evaluation")
OBJECTIVES = ("objectives", "prompting", "alignment")  # one name space: `objective.kind` may stand on any of the three
ONE = {"models": "model", "objectives": "objective"}  # what one thing on the shelf is called


@dataclass(frozen=True)
class Shelf:
    """Marks a field that holds a plug-in's section: `objective: Annotated[dict | str, Shelf("objectives")]`."""

    name: str
    key: str = "kind"  # the key that names the plug-in: `arch` for models
    many: bool = False  # a list of sections is one too
    bare: bool = True  # a bare string is the plug-in's name; False: a string is something else (a source of weights)
    extra: tuple[str, ...] = ()  # keys of the section that are not the plug-in's own: `tokenizer`
    nest: str = ""  # the file of sections that hold sections, one dataclass for each, its name the key that holds them: `fuse`


def lookup(shelf: str, name: str) -> type:
    """The dataclass of plug-in `name`; ValueError with a suggestion when there is none."""
    shelf = shelf_of(shelf, name)
    module = importlib.import_module(f"luthier.{shelf}.{name}")
    found = [value for value in vars(module).values() if isinstance(value, type) and is_plug_in(value, module.__name__)]
    return only(found, Path(str(module.__file__)))


def names(shelf: str) -> list[str]:
    """The plug-ins that stand on a shelf, in alphabetical order."""
    return sorted(path.stem for folder in folders(shelf) for path in folder.glob("*.py") if not path.stem.startswith("_"))


def describe(shelf: str, name: str) -> Description:
    """Title, paper, fields with defaults, and constants of a plug-in, by `ast` alone."""
    return read(find(shelf_of(shelf, name), name))


def add_folder(folder: str | Path) -> None:
    """Put a user's plug-ins on the shelves: `folder/tuning/mine.py` becomes `lookup("tuning", "mine")`."""
    folder = Path(folder).expanduser().resolve()
    added = [shelf for shelf in SHELVES if (folder / shelf).is_dir()]
    if not added:
        raise ValueError(f"{folder}: no folder of plug-ins; it needs a sub-folder called {' or '.join(SHELVES)}")
    for shelf in added:
        if folder / shelf in folders(shelf):
            continue
        for path in (folder / shelf).glob("*.py"):
            if path.stem in names(shelf):
                raise ValueError(
                    f"{path}: a plug-in called {path.stem!r} stands on the shelf {shelf!r} already; give the file another name"
                )
        importlib.import_module(f"luthier.{shelf}").__path__.append(str(folder / shelf))  # Python's own way to spread a package
        importlib.invalidate_caches()


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: what was meant, or what there is."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, 1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(known)}" if known else ""


def shelf_of(shelf: str, name: str) -> str:
    """The shelf where `name` stands: `shelf`, or for objectives one of the three that share their names."""
    shelves = OBJECTIVES if shelf == "objectives" else (shelf,)
    for there in shelves:
        if name.isidentifier() and not name.startswith("_") and any((folder / f"{name}.py").is_file() for folder in folders(there)):
            return there
    known = [known for there in shelves for known in names(there)]
    raise ValueError(f"no {ONE.get(shelf, shelf)} called {name!r}{suggest(name, known)}")


def folders(shelf: str) -> list[Path]:
    """Where the plug-ins of a shelf lie: ours first, then the user's."""
    if shelf not in SHELVES:
        raise ValueError(f"no shelf called {shelf!r}{suggest(shelf, SHELVES)}")
    if not (ROOT / shelf).is_dir():
        return []
    return [Path(path) for path in importlib.import_module(f"luthier.{shelf}").__path__]


def find(shelf: str, name: str) -> Path:
    return next(path for folder in folders(shelf) if (path := folder / f"{name}.py").is_file())


def is_plug_in(value: type, module: str) -> bool:
    return dataclasses.is_dataclass(value) and value.__module__ == module and not value.__name__.startswith("_")
