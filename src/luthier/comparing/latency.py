"""What a token costs at inference: with the base alone, with what was trained around it, and merged; measured by turns in one process.

A decoder takes a step of decoding for one text, the way `generate` does; an encoder, or a pair of stacks, a forward pass over a few texts.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.anatomy.merge import merge
from luthier.comparing.shared import over
from luthier.core.reader import Reader, Sampling
from luthier.core.transformer import Net
from luthier.report import read_json
from luthier.run import prepare
from luthier.run_file import Run
from luthier.sources.model import Model
from luthier.training import folder as folders

BEFORE = 64  # tokens of the text before a decoder's step, at most
TEXTS, TOKENS = 8, 32  # of an encoder's pass, tokens at most
TURNS, LEAST_S = 9, 0.5


def measure(model: Model) -> dict[str, float | None]:
    """Seconds a token: base, unmerged, merged; None where there is nothing to merge or it cannot be. The model stays as it is.

    Of adapters in parallel the first is measured.
    """
    if model.attached is not None and model.attached.net is not None:  # states from a cache: no forward pass of its own
        return {"base": None, "unmerged": None, "merged": None}
    nets = {"unmerged": copied(model).net, "base": bare(model)} | folded(model)
    with model.running()[0]:
        room = model.anatomy.positions - model.before_texts() - 1 if model.anatomy.positions else BEFORE
    with torch.no_grad():
        found = by_turns({name: step(net, max(1, room)) for name, net in nets.items() if net is not None})
    if nets["base"] is None:  # all of it was trained, nothing added
        found["base"] = found["unmerged"]
    return {name: found.get(name) for name in ("base", "unmerged", "merged")}


def of_folder(folder: Path) -> None:
    """Measures the model of a finished run, and writes it into its result.json. OSError or ValueError where it cannot be loaded any more."""
    run, whole = Run.from_yaml(folder / folders.CONFIG), (folder / "model").is_dir()
    ready = prepare(replace(run, model=str(folder / "model")) if whole else run)
    if not whole:
        ready.attached.load(folder / "adapter")
    path = folder / folders.RESULT
    folders.write_json(path, read_json(path, {}) | {"latency": measure(ready.model)})


def copied(model: Model) -> Model:
    """Over the same weights, in evaluation mode."""
    made = Model(over(model.net).eval())
    if model.attached is not None and model.attached.passes:
        made.anatomy.activate(model.attached.passes[0])
    made.net.fuse()
    return made


def bare(model: Model) -> Net | None:
    """The net without what was added; None where nothing was."""
    if not model.anatomy.adapters:
        return None
    made = copied(model)
    for name in made.anatomy.adapters:
        made.anatomy.remove(name)
    return made.net


def folded(model: Model) -> dict[str, Net]:
    """The net with what was trained in its weights, where that can be done."""
    made = copied(model)
    if not made.anatomy.adapters:
        return {}
    try:
        merge(made.anatomy)
    except ValueError:
        return {}
    made.net.fuse()
    return {"merged": made.net}


def step(net: Net, room: int = BEFORE) -> tuple[Callable[[], Any], int]:
    """What is timed, and how many tokens it takes. room: tokens of a text at most."""
    before, each = min(BEFORE, room), min(TOKENS, room)
    device, draw = next(net.parameters()).device, torch.Generator().manual_seed(0)

    def ids(rows: int, tokens: int) -> Tensor:
        return torch.randint(0, net.vocab, (rows, tokens), generator=draw).to(device)

    if net.causal and "lm" in net.heads and not pair(net):
        return decoding(net, ids(1, before), ids(1, 1)), 1
    inputs: dict[str, Any] = {"ids": ids(1, TEXTS * each), "lengths": (each,) * TEXTS}
    if pair(net):
        inputs |= {"decoder_ids": ids(1, TEXTS * each), "decoder_lengths": inputs["lengths"]}
    return lambda: net.hidden(**inputs), TEXTS * each


def decoding(net: Net, text: Tensor, token: Tensor) -> Callable[[], Any]:
    reader = Reader(net, 1, Sampling())
    reader(text)

    def call() -> None:
        length = reader.cache.length if reader.cache is not None else 0
        reader(token)
        if reader.cache is not None:
            reader.cache.cut(length)
        else:  # it reads all of it anew
            reader.ids_BT, reader.mask_BT = reader.ids_BT[:, :-1], reader.mask_BT[:, :-1]

    return call


def pair(net: Net) -> bool:
    return "encoder" in (stacks := Model(net).anatomy.stacks) and "decoder" in stacks


def by_turns(calls: Mapping[str, tuple[Callable[[], Any], int]]) -> dict[str, float]:
    """The quickest of each, over turns of them all: what else the machine does at that moment is no part of it."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    while len(times[next(iter(times))]) < TURNS or time.perf_counter() - begun < LEAST_S:
        for name, (call, tokens) in calls.items():
            start = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - start) / tokens)
    return {name: min(each) for name, each in times.items()}
