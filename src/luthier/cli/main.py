"""The `luthier` command: finds the verbs by file name and turns exceptions into exit codes.

A verb is one file here, `cli/<verb>.py`; nothing is registered anywhere:

- the first line of its module docstring is its line in `luthier --help` (read as text, the file is not imported);
- it defines a function called like the verb (`list_` in list.py, because `list` is taken) with typer-annotated
  parameters, whose docstring is the text of `luthier <verb> --help`; or, when it has sub-verbs (data.py: inspect,
  validate, convert), a typer application called `app` (`app = typer.Typer(rich_markup_mode=None)`);
- it is imported only when called, and imports torch, and what imports torch, inside that function: help texts and
  configuration errors answer without torch;
- it raises and does not exit: ValueError and OSError become one sentence on stderr and exit code 2, `luthier.config.RunFailed`
  becomes 1, Ctrl-C 130. `luthier --traceback <verb> ...` shows where a message comes from.

    def train(run: Annotated[Path, typer.Argument(help="the run file")], overrides: Annotated[list[str], typer.Argument()] = []) -> None:
        "Train as RUN says."
"""

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from luthier.cli._words import Verb, plainly

FOLDER = Path(__file__).parent


class Verbs(TyperGroup):
    """A group of commands, one for each file beside this one; a file is imported when its verb is called."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.commands = {verb: Verb(name=verb, help=help_line(verb)) for verb in verbs()}

    def get_params(self, ctx: Any) -> list[Any]:
        return plainly(super().get_params(ctx), options)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, stub, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in self.commands else stub, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `luthier list | head`: typer leaves quietly
            raise
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except Exception as error:
            code = exit_code(error)
            if code is None or ctx.params.get("traceback"):
                raise
            typer.echo(f"luthier: {sentence(error)}", err=True)
            raise typer.Exit(code) from None


def verbs() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "main" and not path.stem.startswith("_"))


def help_line(verb: str) -> str:
    """The first line of the file's docstring; parsing every file would take a tenth of the time that an answer may take."""
    with (FOLDER / f"{verb}.py").open(encoding="utf-8") as file:
        return file.readline().strip().strip('"')


def load(verb: str) -> Any:
    """The command of cli/<verb>.py, imported now."""
    module = importlib.import_module(f"luthier.cli.{verb}")
    contents = vars(module)
    if "app" in contents:
        return typer.main.get_command(contents["app"])
    function = contents[f"{verb}_" if f"{verb}_" in contents else verb]
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(verb, cls=Verb)(function)
    return typer.main.get_command(single)


def exit_code(error: Exception) -> int | None:
    """1: the run failed; 2: what the user gave is wrong; None: a defect of ours (or typer's own way to say it), let through."""
    from luthier.config import RunFailed  # here: the YAML reader is not needed to show a help text

    return 1 if isinstance(error, RunFailed) else 2 if isinstance(error, ValueError | OSError) else None


def sentence(error: Exception) -> str:
    """What went wrong, for a person: an OSError without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


app = typer.Typer(cls=Verbs, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True)


def show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"luthier {version('luthier')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
) -> None:
    """Luthier builds, tunes and voices language models. A run is one YAML file: model x tuning x objective x data."""


def main() -> None:
    """The entry point of the `luthier` script."""
    app(prog_name="luthier")


if __name__ == "__main__":
    sys.exit(main())
