"""Check a run before it starts: settings, data, model, and what would spoil it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.list import print_table

if TYPE_CHECKING:
    from luthier.doctor import Finding

WORDS = {"fine": "fine", "note": "note", "stop": "STOP"}


def doctor(
    run: Annotated[Path, typer.Argument(help="the run file (YAML)", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="settings on top: training.rate=1e-4", show_default=False)] = None,
) -> None:
    """Load everything that RUN names, look at the first rows as the run would, and tell what is fine and what is not.

    Trains and writes nothing.
    """
    from luthier.run_file import Run

    config = Run.from_yaml(run, overrides or ())
    from luthier.doctor import check
    from luthier.run import prepare

    ready = prepare(config)
    findings = check(config, ready.model, ready.stream, ready.objective)
    print_table(f"{run}", ("check", "", "what"), rows(findings))
    stops = sum(finding.level == "stop" for finding in findings)
    if stops:
        typer.echo(f"luthier: {run} would not start: {stops} of {len(findings)} checks stop it", err=True)
        raise typer.Exit(2)


def rows(findings: "list[Finding]") -> list[tuple[str, ...]]:
    return [(finding.check, WORDS[finding.level], finding.sentence) for finding in findings]
