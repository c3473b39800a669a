"""Compare tuning methods: run a grid of them over one base, or put finished runs side by side."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def compare(
    what: Annotated[
        list[str], typer.Argument(metavar="GRID | RUN ...", help="a grid file and settings on top, or folders", show_default=False)
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a grid: finished cells stay, half ones continue.")] = False,
    metric: Annotated[str, typer.Option(help="of finished runs: what they are sorted and tested by", show_default=False)] = "",
    report: Annotated[
        Path | None, typer.Option(help="of finished runs: a folder for the tables and report.html, or an .html file", show_default=False)
    ] = None,
    latency: Annotated[bool, typer.Option("--latency", help="Of finished runs: load each, and measure what a token takes.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Run every cell of a grid (YAML) and compare them, or compare the folders of finished runs and grids.

    A grid's folder takes cells/, grid.json, table.json, table.csv, table.tex and report.html.
    """
    from shutil import get_terminal_size

    if Path(what[0]).suffix in (".yaml", ".yml"):
        if metric or report or latency:
            raise ValueError(
                "--metric, --report and --latency are for finished runs; a grid has `metric`, `output` and `latency` in its file"
            )
        from luthier.comparing.grid_file import read_grid
        from luthier.comparing.ledger import check

        grid, cells = read_grid(what[0], what[1:])  # first: mistakes are told before torch is imported
        check(Path(grid.output).expanduser(), resume)
        from luthier.comparing.runner import go

        try:
            found = go(grid, cells, resume)
        except KeyboardInterrupt as stop:
            typer.echo(f"luthier: {stop or 'stopped; go on with --resume'}", err=True)
            raise
    else:
        from luthier.comparing.page import write
        from luthier.comparing.read import read
        from luthier.comparing.summary import compare as compared

        if resume:
            raise ValueError("--resume is for a grid; name its YAML file")
        if report is not None and report.suffix[1:2].isalpha() and report.suffix != ".html" and not report.is_dir():
            raise ValueError(
                f"--report {report}: name a folder for the tables and the page, or a file that ends in .html for the page alone"
            )
        if latency:
            from luthier.comparing.latency import of_folder

            for cell in read(what).cells:
                if cell.error is None:
                    of_folder(cell.folder)
        found = compared(read(what), metric or None)
        if report is not None:
            write(report, found)
    from luthier.comparing import table

    width, terminal = get_terminal_size().columns, sys.stdout.isatty()
    typer.echo(table.as_json(found) if json else table.terminal(found, width, terminal))
