"""Continue prompts or answer questions with a model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli._options import Block, Dtype, Int8, Remasking, Steps, TopK


def generate(
    source: Annotated[str, typer.Argument(help="a folder, a .gguf file, pkg://..., hub://..., or a run's folder", show_default=False)],
    prompt: Annotated[list[str] | None, typer.Option(help="a prompt; may be given several times", show_default=False)] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="a file of prompts: one a line, or rows of any form, which may name an adapter each", show_default=False),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="put each prompt into the chat template, as a user's question")] = False,
    system: Annotated[str, typer.Option(help="with --chat: the system message", show_default=False)] = "",
    template: Annotated[str, typer.Option(help="with --chat: a built-in chat template, or a file of Jinja", show_default=False)] = "",
    adapter: Annotated[Path | None, typer.Option(help="an adapter's folder, in peft's form", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option(help="new tokens at most")] = 128,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token")] = 1.0,
    top_k: TopK = 0,
    top_p: Annotated[float, typer.Option(help="only the likeliest tokens that make up this probability")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="above 1: what was said is said again less often")] = 1.0,
    beams: Annotated[int, typer.Option(help="above 1: beam search instead of sampling")] = 1,
    samples: Annotated[int, typer.Option(help="texts for each prompt")] = 1,
    steps: Steps = 0,
    block: Block = 32,
    remasking: Remasking = "low_confidence",
    guidance: Annotated[float, typer.Option(help="of such a model: above 0, the answer keeps closer to the prompt")] = 0.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="a string that ends a text; may be given several times", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same texts", show_default=False)] = None,
    batch: Annotated[int, typer.Option(help="prompts at a time")] = 8,
    int8: Int8 = False,
    dtype: Dtype = "",
    as_json: Annotated[bool, typer.Option("--json", help="a line of JSON for each text: prompt and text")] = False,
) -> None:
    """Write what SOURCE's model says after each prompt."""
    asked: list[tuple[str | list[dict[str, str]], str]] = [(text, "") for text in prompt or []]
    if prompts is not None:
        asked.extend(read_prompts(prompts))
    if not asked:
        raise ValueError("nothing to continue: give --prompt TEXT or --prompts FILE")
    if batch < 1:
        raise ValueError(f"--batch {batch} must be at least 1")

    import torch

    from luthier.data.template import choose
    from luthier.sources.generate import generate_texts
    from luthier.tuning._load import load

    head = [{"role": "system", "content": system}] if system else []
    asked = [([*head, {"role": "user", "content": p}] if chat and isinstance(p, str) else p, name) for p, name in asked]
    model = load(source, adapter, dtype or None)
    written = choose(template, model.tokenizer) if template and model.tokenizer is not None else None
    generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
    several = len(asked) * samples * len(model.running()) > 1
    for start in range(0, len(asked), batch):
        for number, running in enumerate(model.running()):  # adapters in parallel answer each for itself
            some = [(question, name) for question, name in asked[start : start + batch] if not (name and number)]
            with running:
                texts = generate_texts(
                    model, [question for question, _ in some], max_tokens, temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty, beams=beams,
                    samples=samples, steps=steps, block=block, remasking=remasking, guidance=guidance, stop=stop or [], generator=generator,
                    int8=int8, template=written, adapters=names if any(names := [name for _, name in some]) else (),
                )  # fmt: skip
            for i, text in enumerate(texts):
                show(some[i // samples][0], text, as_json, several)


def read_prompts(path: Path) -> list[tuple[str | list[dict[str, str]], str]]:
    """The lines of a text file; of any other, what its rows ask (a conversation without its last answer), and of which adapter."""
    if path.suffix == ".txt":
        return [(line, "") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    from luthier.evaluation._questions import read_questions

    return [([dict(turn) for turn in question.messages], question.adapter) for question in read_questions(path)]


def show(prompt: str | list[dict[str, str]], text: str, as_json: bool, several: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False))
        return
    if several:
        question = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        typer.secho(f"> {question}", bold=True)
    typer.echo(text)
