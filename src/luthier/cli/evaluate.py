"""Measure a run or a model on held-out rows and on your questions, before and after tuning side by side."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.evaluation._questions import Question
    from luthier.objectives._objective import Objective
    from luthier.run_file import Run
    from luthier.sources.model import Model

Side = tuple["Model", "Objective | None"]  # a run's model comes with its objective
Load = Callable[[], Side]
Write = Callable[[Sequence[list[dict]]], list[str]]
ENDINGS = (".html", ".json", ".jsonl")


def evaluate(
    subject: Annotated[str, typer.Argument(help="the folder of a run, its YAML, or a model", show_default=False)],
    data: Annotated[Path | None, typer.Option(help="rows to measure on; left out: the run's held-out rows", show_default=False)] = None,
    questions: Annotated[Path | None, typer.Option(help="questions to answer: one a line, or rows of any form", show_default=False)] = None,
    measures: Annotated[str, typer.Option(help="bleu,rouge,...; left out: those of the run, or perplexity", show_default=False)] = "",
    adapter: Annotated[Path | None, typer.Option(help="for a model: an adapter, whose folder is after", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="write it all here: .html, .json or .jsonl", show_default=False)] = None,
    rows: Annotated[int, typer.Option(help="at most so many rows and questions; 0: all")] = 0,
    max_tokens: Annotated[int, typer.Option(help="of an answer")] = 128,
    temperature: Annotated[float, typer.Option(help="0: the likeliest answer")] = 0.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
) -> None:
    """Measure SUBJECT on held-out rows, and show its answers to questions.

    A run is taken before (the model it started from) and after (with what it trained); a model alone has one side, with --adapter two.
    """
    from luthier.evaluation._questions import read_questions

    if out is not None and out.suffix not in ENDINGS:
        raise ValueError(f"--out {out}: it must end in {', '.join(ENDINGS)}")
    run, sides = open_subject(subject, adapter, device)
    if rows < 0:
        raise ValueError(f"--rows {rows} must be 0 (all) or more")
    asked = read_questions(questions, rows or None) if questions else []
    task = open_task(run, data, rows) if run or data else None
    if not asked and task is None:
        raise ValueError(f"{subject} is a model, not a run: give --data FILE to measure on, or --questions FILE to answer")
    found = Found(asked)
    for name, load in sides.items():
        model, objective = load()
        write = writer(model, max_tokens, temperature)
        found.figures[name] = task.measured(model, objective, measures, write) if task else {}
        if asked:
            chosen = [question.adapter if model.attached is not None else "" for question in asked]
            texts = model.each_under(chosen, lambda mine, write=write: write([asked[i].messages for i in mine]))
            found.answers[name] = [text.strip() for text in texts]
            found.figures[name] |= scored(asked, found.answers[name], measures)
    show(found)
    if out is not None:
        out.write_text(found.text(out.suffix, Path(subject).name), encoding="utf-8")
        typer.echo(f"written to {out}")


# What is evaluated


def open_subject(subject: str, adapter: Path | None, device: str) -> "tuple[Run | None, dict[str, Load]]":
    """The run, if it is one, and how to load each side."""
    from luthier.run_file import Run

    path = Path(subject).expanduser()
    file = path / "config.yaml" if path.is_dir() and not (path / "config.json").exists() else path
    if file.suffix not in (".yaml", ".yml") or not file.exists():
        base = partial(alone, subject, None, device)
        return None, {"before": base, "after": partial(alone, subject, adapter, device)} if adapter else {"model": base}
    if adapter is not None:
        raise ValueError(f"{subject} is a run, which has an adapter of its own; leave --adapter out, or name a model")
    run = Run.from_yaml(file)
    folder = path if path.is_dir() else Path(run.output).expanduser()
    sides: dict[str, Load] = {"before": partial(of_run, run, None, device)}
    for made in ("adapter", "model"):
        if (folder / made).is_dir():
            sides["after"] = partial(of_run, run, folder / made, device)
    if path.is_dir() and "after" not in sides:
        raise FileNotFoundError(
            f"{folder}: neither adapter/ nor model/ there: the run has not finished. luthier train RUN.yaml --resume auto"
        )
    return run, sides


def of_run(run: "Run", made: Path | None, device: str) -> Side:
    """The model as the run began with it, or with the adapter/ or model/ that the run made."""
    from dataclasses import replace

    from luthier.run import prepare

    whole = made is not None and made.name == "model"
    ready = prepare(replace(run, device=device, model=str(made) if whole else run.model))
    if made is not None and not whole:
        ready.attached.load(made)
    return ready.model, ready.objective


def alone(subject: str, adapter: Path | None, device: str) -> Side:
    from luthier.run import device as chosen
    from luthier.tuning._load import load

    return load(subject, adapter, device=chosen(device)), None


# What it is measured on


@dataclass(frozen=True)
class Task:
    """Rows, and the run whose objective and measures they are for, if there is one."""

    rows: list[dict]
    run: "Run | None"

    def measured(self, model: "Model", objective: "Objective | None", measures: str, write: Write) -> dict[str, float]:
        from rich.console import Console

        from luthier.evaluation._measure import measure
        from luthier.run_file import make

        objective = objective or fitting(self.rows[0], model)
        rows = self.rows if model.attached is not None else [{**row, "adapter": ""} for row in self.rows]  # before, there were none
        settings: Sequence[Any] = names(measures) or (self.run.evaluation if self.run else ())
        settings = settings or (["perplexity"] if objective.predicts == "tokens" else [])
        wanted = [make("evaluation", setting) for setting in settings]
        sizes: Any = {"length": self.run.data.length, "micro_tokens": self.run.training.micro_tokens} if self.run else {}
        return measure(model, objective, rows, wanted, **sizes, answer=write, console=Console(stderr=True))


def open_task(run: "Run | None", data: Path | None, most: int) -> Task:
    """The rows of a file, or those that the run held out."""
    from dataclasses import replace

    from luthier.data.settings import Data
    from luthier.data.stream import open_stream

    if data is None:
        assert run is not None
        held_out = open_stream(run.data, run.seed).held_out
        if not held_out:
            raise ValueError("the run holds no rows out; give --data FILE")
        return Task(held_out[: most or None], run)
    settings = replace(run.data, path=str(data), held_out=0) if run else Data(path=str(data), held_out=0)
    stream = open_stream(settings, 0)
    part = stream.parts[0]
    return Task([part[i] for i in range(min(len(part.rows), most or len(part.rows)))], run)


def fitting(row: dict, model: "Model") -> "Objective":
    """What a model without a run can be measured by: conversations or plain text."""
    from luthier.run_file import make

    kind = "chat" if "messages" in row else "text" in row and ("causal" if model.net.causal else "masked")
    if not kind or "label" in row or "score" in row:
        raise ValueError(f"rows with {', '.join(row)} need a run that learnt them; give its folder instead of a model")
    return make("objectives", kind)


# Answers


def writer(model: "Model", max_tokens: int, temperature: float) -> Write:
    def write(conversations: Sequence[list[dict]]) -> list[str]:
        from luthier.sources.generate import generate_texts

        return generate_texts(model, list(conversations), max_tokens=max_tokens, temperature=temperature)

    return write


def scored(asked: "Sequence[Question]", answers: Sequence[str], measures: str) -> dict[str, float]:
    """The measures of texts, on the questions whose right answer is known."""
    from luthier.run_file import make

    known = [(answer, question.reference) for answer, question in zip(answers, asked, strict=True) if question.reference]
    wanted = [measure for name in names(measures) if (measure := make("evaluation", name)).of in ("texts", "spans")]
    if wanted and not known:
        raise ValueError(f"none of the {len(asked)} questions has a reference, which {measures} needs; add a column called reference")
    guesses, references = zip(*known, strict=True) if known else ((), ())
    return {f"{name} on questions": value for measure in wanted for name, value in measure.score(guesses, references).items()}


def names(measures: str) -> list[str]:
    return [name.strip() for name in measures.split(",") if name.strip()]


# What is shown and written


@dataclass
class Found:
    """Figures and answers by side."""

    questions: "Sequence[Question]"
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        answers = zip(*self.answers.values(), strict=True) if self.answers else []
        return [
            {"prompt": question.messages, "reference": question.reference or None, **dict(zip(self.answers, texts, strict=True))}
            for question, texts in zip(self.questions, answers, strict=True)
        ]

    def text(self, ending: str, name: str) -> str:
        if ending == ".jsonl":
            return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows())
        if ending == ".json":
            return json.dumps({"figures": self.figures, "answers": self.rows()}, ensure_ascii=False, indent=1) + "\n"
        from luthier.report import figures, render, shown

        last = "after" if "after" in self.figures else next(iter(self.figures))
        samples = [shown({**row, "after": row[last]}) for row in self.rows()]
        return render(name, figures=figures(self.figures.get("before", {}), self.figures[last]), samples=samples)


def show(found: Found) -> None:
    """Answers, then figures, as tables as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if found.answers:
        table = Table("question", *found.answers, show_lines=True)
        for row in found.rows():
            table.add_row(Text(row["prompt"][-1]["content"]), *(Text(row[side]) for side in found.answers))
        console.print(table)
    figures = list(dict.fromkeys(name for side in found.figures.values() for name in side))
    if figures:
        table = Table("figure")
        for side in found.figures:
            table.add_column(side, justify="right")
        for name in figures:
            table.add_row(name.replace("_", " "), *(f"{side[name]:.4g}" if name in side else "" for side in found.figures.values()))
        console.print(table)
