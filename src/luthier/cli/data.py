"""Look at a data file, check every row, turn it into another form."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.data.settings import FORMS, Data

if TYPE_CHECKING:
    from luthier.data.stream import Part
    from luthier.data.survey import Survey
    from luthier.data.template import Template
    from luthier.data.tokenizer import Ranges, Tokenizer

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="JSONL, JSON, CSV, TSV, Parquet or text, also gzipped", show_default=False)]
Form = Annotated[str, typer.Option(help=f"auto, {', '.join(FORMS)}")]
ModelOption = Annotated[
    str | None, typer.Option(help="whose tokenizer and chat template: a folder, .gguf, pkg://..., hub://...", show_default=False)
]
TemplateOption = Annotated[
    str | None, typer.Option(help="human_assistant, alpaca, vicuna, baichuan, chatglm or a Jinja file", show_default=False)
]
SystemOption = Annotated[str | None, typer.Option(help="system message for conversations without one", show_default=False)]
Length = Annotated[int, typer.Option(help="tokens of a row at most")]


@app.command()
def inspect(
    file: File,
    model: ModelOption = None,
    template: TemplateOption = None,
    row: Annotated[int, typer.Option(help="which row to show, from 1")] = 1,
    form: Form = "auto",
    system: SystemOption = None,
    length: Length = 1024,
) -> None:
    """Say which form FILE has and show one row as the model reads it, the learnt part coloured."""
    from rich.console import Console

    from luthier.data.survey import CONVERSATIONS, read_as, survey

    part = _part(file, form, system)
    if not 1 <= row <= len(part.rows):
        raise ValueError(f"--row {row}: {file} has rows 1 to {len(part.rows)}")
    tokenizer, chosen = _reading(model, template)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{file}: form {part.form}, {len(part.rows)} rows, columns {', '.join(map(str, part.rows[0]))}", markup=False)
    if part.form in CONVERSATIONS and chosen is None:
        from luthier.data.template import named

        chosen = named("human_assistant")
        console.print("no --model or --template given: shown in the plain template human_assistant", markup=False)
    text, ranges = read_as(part[row - 1], chosen)
    console.print(f"\n{part.rows.where(row - 1)}", markup=False)
    console.print(_coloured(text, ranges, tokenizer, console.is_terminal))
    found = survey(part, tokenizer, chosen, length)
    console.print("\n" + "\n".join(_summary(found, length)), markup=False)


@app.command()
def validate(
    file: File,
    model: ModelOption = None,
    template: TemplateOption = None,
    form: Form = "auto",
    length: Length = 1024,
) -> None:
    """Check every row of FILE; with --model also what is left of it within the length."""
    from luthier.data.survey import survey

    part = _part(file, form, None)
    tokenizer, chosen = _reading(model, template)
    found = survey(part, tokenizer, chosen, length)
    bad = found.problems + found.advice(length)
    if bad:
        more = f"\n... and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise ValueError(f"{file}: {len(found.problems)} of {found.rows} rows cannot be used\n" + "\n".join(bad[:20]) + more)
    typer.echo(f"{file}: {found.rows} rows of the form {found.form}, every one good")
    typer.echo("\n".join(_summary(found, length)))


@app.command()
def convert(
    file: File,
    out: Annotated[Path, typer.Argument(help="where to; its ending says how: .jsonl .json .csv .tsv .parquet", show_default=False)],
    to: Annotated[str, typer.Option(help="messages, sharegpt, or rows (as they are)")] = "messages",
    form: Form = "auto",
    system: SystemOption = None,
    force: Annotated[bool, typer.Option("--force", help="write over OUT")] = False,
) -> None:
    """Write the rows of FILE to OUT, in the normalised form of their task or as they are."""
    from luthier.data import write

    if to not in ("messages", "sharegpt", "rows", *write.KINDS):
        raise ValueError(f"--to {to}: choose messages, sharegpt or rows")
    if to in write.KINDS and out.suffix.lower() != f".{to}":
        raise ValueError(f"--to {to}: then {out} should end in .{to}")
    if out.exists() and not force:
        raise FileExistsError(f"{out} is there already; give another name or --force")
    count = write.write_rows(_converted(file, "rows" if to in write.KINDS else to, form, system), out)
    typer.echo(f"{out}: {count} rows")


def _converted(file: Path, to: str, form: str, system: str | None) -> Iterator[dict]:
    if to == "rows":
        from luthier.data.read import read

        yield from read(file, form)
        return
    from luthier.data.write import as_sharegpt

    part = _part(file, form, system)
    for index in range(len(part.rows)):
        row = part[index]
        if to == "sharegpt" and "messages" not in row:
            raise ValueError(f"{file} is of the form {part.form!r}, not conversations; use --to messages or --to rows")
        yield as_sharegpt(row) if to == "sharegpt" else row


def _part(file: Path, form: str, system: str | None) -> "Part":
    from luthier.data.read import read
    from luthier.data.stream import Part

    data = Data(str(file), form=form, system=system)
    return Part(read(file, form), data)


def _reading(model: str | None, template: str | None) -> "tuple[Tokenizer | None, Template | None]":
    """The tokenizer and the template to read with, without the model's weights."""
    if model is None:
        if template is None:
            return None, None
        from luthier.data.template import named

        return None, named(template)
    from luthier.data.template import choose
    from luthier.sources.open import open_checkpoint

    tokenizer = open_checkpoint(model).tokenizer
    if tokenizer is None:
        raise ValueError(f"{model} has no tokenizer; give a model that has one")
    return tokenizer, choose(template, tokenizer)


def _coloured(text: str, ranges: "Ranges", tokenizer: "Tokenizer | None", colours: bool):
    """The text, what is learnt in green (its tokens told apart by shade); between ⟦ ⟧ where there are no colours."""
    from rich.text import Text

    shown, at = Text(), 0
    for start, stop in ranges:
        shown.append(text[at:start], "dim")
        shown.append("" if colours else "⟦")
        for i, piece in enumerate(_tokens(text[start:stop], tokenizer)):
            shown.append(piece, "bold green" if i % 2 == 0 else "green")
        shown.append("" if colours else "⟧")
        at = stop
    return shown.append(text[at:], "dim")


def _tokens(text: str, tokenizer: "Tokenizer | None") -> list[str]:
    if tokenizer is None:
        return [text]
    starts = [0, *sorted({start for start, stop in tokenizer.spans(text)[1] if stop > start > 0}), len(text)]
    return [text[a:b] for a, b in pairwise(starts)]


def _summary(found: "Survey", length: int) -> list[str]:
    lines = [f"problems: {len(found.problems)}" + (f"; the first: {found.problems[0]}" if found.problems else "")]
    if found.doubles:
        lines.append(f"rows that stand there twice: {found.doubles}")
    if found.tokens:
        total, learnt = sum(found.tokens), sum(found.learnt)
        lines.append(
            f"tokens: {total}, per row {total / len(found.tokens):.0f}, at most {max(found.tokens)}; longer than {length}: {found.cut} rows"
        )
        lines.append(
            f"learnt: {learnt} tokens ({learnt / total:.0%}) within {length} tokens a row; the end of the turn in {found.ended} rows"
        )
    return lines + found.advice(length)
