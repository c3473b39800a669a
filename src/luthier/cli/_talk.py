"""A conversation with a model: its turns, what the cache holds of them, which adapter is at work."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import torch

from luthier.core.reader import Memory, Sampling
from luthier.core.unmask import Unmasking
from luthier.data.template import Template, choose
from luthier.sources.fill import settings
from luthier.sources.generate import generate_texts, stream_text
from luthier.sources.model import Model
from luthier.tuning._load import load
from luthier.tuning._read import load_adapter

Turn = dict[str, str]
USUAL = {"top_p": 0.9, "repetition_penalty": 1.1}  # of a conversation, where nothing else is said


class Talk:
    """`answer` streams an answer and remembers both turns; the cache is read on from where the last turn ended."""

    def __init__(
        self,
        model: Model,
        sampling: Sampling | Unmasking,
        template: Template | None = None,
        system: str = "",
        generator: torch.Generator | None = None,
        int8: bool = False,
    ) -> None:
        self.model, self.sampling, self.template, self.system = model, sampling, template, system
        self.options: dict[str, Any] = {"template": template, "generator": generator, "int8": int8}
        self.turns: list[Turn] = []
        self.memory = Memory()
        self.folders: dict[str, str] = {}  # adapter name -> the folder it came from

    @property
    def name(self) -> str:
        """The model, and the adapter at work."""
        active = [self.folders.get(name, name) for name in self.model.anatomy.active]
        return self.model.source + (f" with {', '.join(active)}" if active else "")

    def asked(self, question: str) -> list[Turn]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.turns, {"role": "user", "content": question}]

    def answer(self, question: str) -> Generator[str, None, None]:
        """Pieces of the answer. Stopped early, what was said so far is remembered; a refused question is not."""
        said: list[str] = []
        try:
            for piece in stream_text(self.model, self.asked(question), self.sampling, memory=self.memory, **self.options):
                said.append(piece)
                yield piece
        finally:
            if said:
                self.keep(question, "".join(said))

    def twice(self, question: str) -> tuple[str, str]:
        """Two answers to a question, drawn from the model as it is; the conversation stays as it is until one is `keep`t."""
        one, other = generate_texts(self.model, [self.asked(question)] * 2, **vars(self.sampling), **self.options)
        return one, other

    def keep(self, question: str, answer: str) -> None:
        """The conversation goes on from this answer."""
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def reset(self) -> None:
        self.turns = []
        self.memory.clear()

    def adapt(self, folder: str) -> str:
        """Puts the adapter of a folder to work, or none ("off"); says what is at work now. A folder that does not fit changes nothing."""
        body = self.model.anatomy
        if not folder:
            return self.name
        if folder == "off":
            body.activate()
        else:
            body.activate(self._loaded(folder))
        self.memory = Memory()  # what was read was read by another model
        return self.name

    def _loaded(self, folder: str) -> str:
        path = Path(folder).expanduser()
        known = [name for name, place in self.folders.items() if Path(place) == path]
        if known:
            return known[0]
        if not path.is_dir():
            raise FileNotFoundError(
                f"{folder}: no such folder; an adapter is a folder with adapter_config.json and adapter_model.safetensors"
            )
        name, before = f"chat{len(self.folders)}", self.model.anatomy.active
        try:
            load_adapter(self.model, path, name)
        except BaseException:
            self.model.anatomy.activate(*before)
            raise
        self.model.net.eval()
        self.folders[name] = str(path)
        return name

    def compare(self, question: str, before: Callable[[str], None] = lambda side: None) -> Iterator[tuple[str, str]]:
        """("base", its answer), (the adapter, its answer) to a question, or to the last one again; the conversation stays as it is."""
        body = self.model.anatomy
        names = body.active or body.adapters[-1:]
        if not names:
            raise ValueError("there is no adapter to compare with; put one to work first: /adapter DIR")
        turns = self.asked(question)
        if not question:
            if not self.turns:
                raise ValueError("there is no question yet; ask one, or give it: /compare TEXT")
            turns = self.asked("")[:-3] + [self.turns[-2]]
        for side, active in (("base", ()), (", ".join(self.folders.get(name, name) for name in names), names)):
            before(side)
            with body.using(*active):
                yield side, generate_texts(self.model, [turns], **vars(self.sampling), **self.options)[0]


def open_talk(
    source: str, adapter: Path | None, system: str, template: str, choices: dict[str, Any], seed: int | None, int8: bool, dtype: str
) -> Talk:
    """Loads the model and what goes with it. ValueError where it has no tokenizer or no chat template."""
    model = load(source, None, dtype or None)
    usual = USUAL if model.net.fills is None else {}
    sampling = settings(model, usual | {name: value for name, value in choices.items() if value is not None}, ())
    if model.tokenizer is None:
        raise ValueError(f"{source} has no tokenizer, so nobody can talk with it")
    written = choose(template, model.tokenizer) if template else model.template
    if written is None:
        raise ValueError(f"{source} carries no chat template; choose one: --template human_assistant")
    generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
    talk = Talk(model, sampling, written, system, generator, int8)
    for name in model.anatomy.adapters:  # of a run's folder, or of an adapter's
        talk.folders[name] = source
    if adapter is not None:
        talk.adapt(str(adapter))
    return talk
