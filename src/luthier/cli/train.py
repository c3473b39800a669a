"""Train as a run file says; go on after a stop, to the same weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from luthier.run import Result


def train(
    run: Annotated[Path, typer.Argument(help="the run file (YAML)", show_default=False)],
    overrides: Annotated[list[str] | None, typer.Argument(help="settings on top: training.rate=1e-4", show_default=False)] = None,
    resume: Annotated[str | None, typer.Option(help="auto, or the folder of a checkpoint: go on from there", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Load and check everything; train and write nothing.")] = False,
) -> None:
    """Train as RUN says, into its output folder: metrics, checkpoints, the adapter or model, a report.

    Ctrl-C finishes the step and writes a checkpoint; --resume auto goes on from the newest one and ends with the same weights as a run
    that was never stopped.
    """
    from luthier.run import run as start
    from luthier.run_file import Run

    config = Run.from_yaml(run, overrides or ())
    from luthier.training.stop import Interrupted

    try:
        result = start(config, resume, dry_run)
    except Interrupted as stop:
        typer.echo(f"luthier: {stop}", err=True)
        raise
    typer.echo("\n".join(lines(result)))


def lines(result: "Result") -> list[str]:
    """What came of the run, in words."""
    trained = f"trained parameters  {result.trainable:,} of {result.parameters:,}"
    if result.history is None:
        return [trained, "dry run: everything is in order, nothing was trained"]
    history, found = result.history, [trained]
    found.append(f"steps               {history.steps:,} ({history.tokens:,} tokens in {history.time_s:,.0f} s)")
    if history.before and history.after:
        found.append(f"held-out loss       {history.before['loss']:.4f} before, {history.after['loss']:.4f} after")
    if history.best and history.after and history.best["step"] != history.after["step"]:
        found.append(f"best held-out loss  {history.best['loss']:.4f} at step {history.best['step']}, kept in checkpoints/")
    return [*found, f"result              {result.path}", f"report              {result.folder / 'report.html'}"]
