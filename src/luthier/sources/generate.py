"""Text in, text out: prompts and conversations continued by a model, with core.generate choosing the tokens."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from luthier.core.generate import generate_ids, stream_ids
from luthier.core.reader import Memory, Sampling
from luthier.core.unmask import Unmasking
from luthier.data.template import Template
from luthier.data.tokenizer import Tokenizer
from luthier.sources.fill import fill_texts, stream_fill
from luthier.sources.fill import settings as settings_of
from luthier.sources.marks import check_prompts
from luthier.sources.model import Model
from luthier.sources.sight import pixels_of, spread
from luthier.sources.writer import Writer

Prompt = str | Sequence[Mapping[str, str]]
OTHERS = ("stop", "seed", "generator", "int8", "template")  # settings beside the choice of tokens


def generate_texts(
    model: Model,
    prompts: Sequence[Prompt] | Prompt,
    max_tokens: int = 128,
    temperature: float = 1.0,
    *,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    generator: torch.Generator | None = None,
    int8: bool = False,
    template: Template | None = None,
    images: Sequence[Sequence[str | Path]] | None = None,
    adapters: Sequence[str] | str = (),
    **sampling: Any,
) -> list[str]:
    """One new text for each prompt (`samples` for each, in turn), without the prompt, the end token or the stop string.

    A prompt is a string, continued as it stands, or a conversation of {"role", "content"}, written by the template (the model's own, if
    none is given) with the header of an answer behind it. stop: strings that end a text. seed or generator: the same one gives the same
    texts; without, torch's global generator is used. int8: weights in 8 bits. sampling: min_tokens, top_k, top_p, repetition_penalty,
    samples, beams, length_penalty. images: for each prompt the files that its places <image> show, where it is a string (turns of a
    conversation have their own "images"). adapters: the adapter that answers, for all prompts or one for each ("": those at work), where the
    model has several. Of models that fill in masks (diffusion_lm) samples, steps, block, remasking, guidance. ValueError
    for settings that do not fit and for prompts that are empty or too long.
    """
    check_prompts(model)
    settings = settings_of(model, {"max_tokens": max_tokens, "temperature": temperature, **sampling}, OTHERS)
    questions = _separate(prompts)
    if adapters:
        names = [adapters] * len(questions) if isinstance(adapters, str) else list(adapters)
        if len(names) != len(questions):
            raise ValueError(f"{len(names)} adapters for {len(questions)} prompts; name one for each, or one for all")
        generator = torch.Generator(model.device).manual_seed(seed) if seed is not None else generator
        rest = {"stop": stop, "generator": generator, "int8": int8, "template": template, **sampling}

        def answered(mine: list[int]) -> list[str]:
            shown = None if images is None else [images[i] for i in mine]
            return generate_texts(model, [questions[i] for i in mine], max_tokens, temperature, images=shown, **rest)

        return model.each_under(names, answered, settings.samples)
    asked = [Asked(model, prompt, stop, template, shown) for prompt, shown in zip(questions, images or [()] * len(questions), strict=True)]
    if not asked:
        return []
    _room(model, asked, settings)
    generator = torch.Generator(model.device).manual_seed(seed) if seed is not None else generator
    eos = asked[0].eos
    writers = [a.writer() for a in asked for _ in range(settings.samples)]
    if isinstance(settings, Unmasking):
        _no_int8(model, int8)
        return fill_texts(model, [a.ids for a in asked], settings, writers, eos, generator)
    options: dict[str, Any] = {"eos": eos, "generator": generator, "int8": int8}
    pixels = [each for a in asked for each in a.pixels]
    if pixels:
        options["images"] = torch.stack(pixels).to(model.device, model.dtype)
    if settings.beams > 1:
        rows = generate_ids(model.net, [a.ids for a in asked], settings, stop=lambda row, new: asked[row].ends(new), **options)
        return [asked[i // settings.samples].text(row, eos) for i, row in enumerate(rows)]
    texts = [""] * len(writers)

    def written(row: int, new: list[int]) -> bool:
        texts[row] += writers[row].feed(new[-1])
        return writers[row].ended

    for _ in stream_ids(model.net, [a.ids for a in asked], settings, stop=written, **options):
        pass
    return [text + writer.flush() for text, writer in zip(texts, writers, strict=True)]


def stream_text(
    model: Model,
    prompt: Prompt,
    sampling: Sampling | Unmasking,
    *,
    stop: str | Sequence[str] = (),
    generator: torch.Generator | None = None,
    memory: Memory | None = None,
    int8: bool = False,
    template: Template | None = None,
) -> Iterator[str]:
    """The answer piece by piece as its tokens are chosen. memory: what earlier calls have read, so that only what is new is read."""
    check_prompts(model)
    asked = Asked(model, prompt, stop, template)
    _room(model, [asked], sampling)
    writer = asked.writer()
    if isinstance(sampling, Unmasking):
        _no_int8(model, int8)
        yield from (piece for (piece,) in stream_fill(model, [asked.ids], sampling, [writer], asked.eos, generator) if piece)
        return
    options: dict[str, Any] = {"stop": lambda _, new: asked.ends(new), "memory": memory, "int8": int8, "generator": generator}
    for step in stream_ids(model.net, [asked.ids], sampling, eos=asked.eos, **options):
        token = step[0]
        piece = "" if token is None or token in asked.eos else writer.feed(token)
        if piece:
            yield piece
        if writer.ended:
            return
    rest = writer.flush()
    if rest:
        yield rest


class Asked:
    """A prompt ready for the net: its ids, and what ends the answer to it."""

    def __init__(
        self,
        model: Model,
        prompt: Prompt,
        stop: str | Sequence[str],
        template: Template | None,
        images: Sequence[str | Path] = (),
    ) -> None:
        if model.tokenizer is None:
            raise ValueError(
                f"{model.source or 'this model'} has no tokenizer, so it cannot read text; use luthier.core.generate on token ids"
            )
        self.tokenizer: Tokenizer = model.tokenizer
        self.stop = [stop] if isinstance(stop, str) else list(stop)
        template = template or model.template
        self.eos = _ends(self.tokenizer, template)
        if isinstance(prompt, str):
            self.ids = self.tokenizer.encode(prompt)
            if not model.encoder_decoder:
                self.ids = [*self.tokenizer.frame()[0], *self.ids]  # as texts begin in training
            self.before = self.ids
            if model.encoder_decoder:
                self.ids, self.before = [*self.ids, *([] if self.tokenizer.eos is None else [self.tokenizer.eos])], []
        else:
            if template is None:
                name = model.source or "this model"
                raise ValueError(f"{name} has no chat template: give one (template=, --template human_assistant), or a plain string")
            self.ids = self.tokenizer.encode(template.render(prompt, generation=True))
            self.before = []
            self.stop.extend(template.stop)
            images = [*images, *(path for turn in prompt for path in turn.get("images", ()))]
        self.pixels = pixels_of(images, model)
        self.ids, _ = spread(self.ids, [], len(self.pixels), model)

    def writer(self) -> Writer:
        return Writer(self.tokenizer, self.stop, self.before)

    def text(self, new: Sequence[int], eos: frozenset[int]) -> str:
        writer = self.writer()
        return "".join([*(writer.feed(token) for token in new if token not in eos), writer.flush()])

    def ends(self, new: Sequence[int]) -> bool:
        return bool(self.stop) and any(stop in self.tokenizer.decode(new) for stop in self.stop)


def _ends(tokenizer: Tokenizer, template: Template | None) -> frozenset[int]:
    """The end token, and the template's end of a turn where that is a special token of its own."""
    ends = {end for end in (tokenizer.eos, None if tokenizer.cls is None else tokenizer.sep) if end is not None}
    turn = tokenizer.encode(template.end_of_turn) if template is not None and template.end_of_turn else []
    return frozenset(ends | set(turn) if len(turn) == 1 and not tokenizer.decode(turn) else ends)


def _separate(prompts: Sequence[Any] | Prompt) -> list[Prompt]:
    """A list of prompts, also where one string or one conversation was given."""
    if isinstance(prompts, str):
        return [prompts]
    return [prompts] if prompts and isinstance(prompts[0], Mapping) else list(prompts)  # type: ignore[list-item]


def _no_int8(model: Model, int8: bool) -> None:
    if int8:
        raise ValueError(f"int8 weights are for models that write from left to right, and {model.source or 'this one'} fills in masks")


def _room(model: Model, asked: Sequence[Asked], sampling: Sampling | Unmasking) -> None:
    """Refuses before the first token what would not fit into the model's positions."""
    positions = getattr(model.net, "config", None) and getattr(model.net.config, "positions", None)  # foreign nets know their own limit
    taken = 0 if positions is None else model.before_texts()
    for i, question in enumerate(asked):
        needed = len(question.ids) + sampling.max_tokens
        if model.encoder_decoder:  # each stack has its own
            needed = max(len(question.ids), sampling.max_tokens)
        if positions is not None and needed + taken > positions:
            beside = f", of which the adapter takes {taken}" if taken else ""
            raise ValueError(
                f"prompt {i + 1} has {len(question.ids)} tokens and {sampling.max_tokens} more are asked for, but the model has "
                f"{positions} positions{beside}; shorten the prompt or lower max_tokens"
            )
