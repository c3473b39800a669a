"""What stands on the shelves: models, objectives, tuning methods, measures; one of them with its settings."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier import lookup
from luthier.declaration import Description


def list_(
    shelf: Annotated[str, typer.Argument(help="models, objectives, tuning, evaluation ...; all when left out")] = "",
    name: Annotated[str, typer.Argument(help="a plug-in, to see its settings")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="a list of objects: shelf, name, title, paper, file, verified, presets, fields")
    ] = False,
    plugins: Annotated[list[Path] | None, typer.Option(help="a folder of your own plug-ins; may be given again")] = None,
) -> None:
    """List the plug-ins of a shelf, or the settings of one of them. Nothing is imported for it."""
    for folder in plugins or []:
        lookup.add_folder(folder)
    shelves = [shelf] if shelf else lookup.SHELVES
    found = [(each, lookup.describe(each, stem)) for each in shelves for stem in ([name] if name else lookup.names(each))]
    if as_json:
        typer.echo(json.dumps([row(each, description) for each, description in found], ensure_ascii=False, indent=1))
    elif name:
        print_fields(found[0][1])
    else:
        print_shelves(found)


def row(shelf: str, found: Description) -> dict[str, Any]:
    """One plug-in as JSON has it."""
    constants = {key: found.constants[key] for key in ("verified", "untrained", "presets", "types") if key in found.constants}
    fields = [
        {"name": f.name, "type": f.type, "doc": f.doc} | ({"required": True} if f.required else {"default": f.default})
        for f in found.fields
    ]
    if shelf == "models":
        constants["presets"] = presets(found)
    about = {"shelf": shelf, "name": found.name, "title": found.title, "paper": found.paper, "file": str(found.file)}
    return about | constants | {"fields": fields}


def presets(found: Description) -> dict[str, dict[str, Any]]:
    """Each published size of a model: all its settings, and its parameters (null for a plug-in of the user's own)."""
    from luthier.sources.counts import kept

    usual, counts = {f.name: f.default for f in found.fields}, kept()
    return {name: {**usual, **changes, "parameters": counts.get(name)} for name, changes in found.constants.get("presets", {}).items()}


def print_shelves(found: list[tuple[str, Description]]) -> None:
    for shelf in dict.fromkeys(shelf for shelf, _ in found):
        rows = [(d.name, told(d), d.paper, d.constants.get("verified", "unverified")) for each, d in found if each == shelf]
        print_table(shelf, ("name", "what", "paper", "verified against"), rows)


def told(found: Description) -> str:
    """Its title, and what cannot be done with it."""
    untrained = found.constants.get("untrained", "")
    return f"{found.title} ({untrained})" if untrained else found.title


def print_fields(found: Description) -> None:
    typer.echo(f"{told(found)}\n{found.paper}\n{found.file}\n")
    rows = [(f.name, f.type, "required" if f.required else str(f.default), f.doc) for f in found.fields]
    print_table(found.name, ("setting", "type", "default", "what"), rows)
    sizes = ("layers", "width", "heads", "vocab", "parameters")
    rows = [(name, *(str(values.get(size, "")) for size in sizes)) for name, values in presets(found).items()]
    if rows:
        print_table("presets", ("preset", *sizes), rows)


def print_table(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table on a terminal; elsewhere lines of columns with tabs between, one line each."""
    if not sys.stdout.isatty():
        typer.echo(title)
        for cells in rows:
            typer.echo("\t".join(("", *cells)))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*heads, title=title, title_justify="left")
    for cells in rows:
        table.add_row(*(cell.replace("[", "\\[") for cell in cells))
    Console().print(table)
