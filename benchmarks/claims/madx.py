"""MAD-X: an English task adapter read German and Dutch by swapping the language adapter under it. Pfeiffer et al. 2020, arXiv:2005.00052.

    LUTHIER_DATA=... python -m benchmarks.claims.madx

A small encoder is trained from nothing on the plain sentences of the three languages, a language adapter for each of them with masked
language modelling on top (base frozen), and for each seed an English NER adapter on the English language adapter. It is then tested with
the right language adapter, with the English one left in place, and with none; beside it, an NER adapter trained without any.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from benchmarks.claims._parts import RESULTS, RUNS, interval, remembered, spread, stage, tagged, told, write
from luthier.data.settings import Data
from luthier.data.stream import open_stream
from luthier.evaluation._measure import evaluating
from luthier.evaluation.span_f1 import entities
from luthier.objectives._batch import Size, once
from luthier.objectives.tag import Tag
from luthier.sources.model import Model
from luthier.training.loop import train
from luthier.training.random import seed_all
from luthier.training.settings import Training
from luthier.tuning._load import load
from luthier.tuning._read import read
from luthier.tuning._tune import tune

HERE = RUNS / "madx"
LANGUAGES = ("en", "de", "nl")
SEEDS = (0, 1, 2)
VOCAB, STEPS, LANGUAGE_STEPS, TASK_STEPS = 6000, 700, 80, 200
SIZES = {"arch": "bert", "width": 128, "layers": 4, "heads": 4, "hidden": 512, "positions": 128}
TASK = {"kind": "adapter", "after": ["ffn"], "reads": "sum", "reduction": 2, "act": "relu", "norms": False}
LENGTH, TESTED = 64, 400


def tokenizer(texts: list[str]) -> Path:
    """A cased WordPiece vocabulary of the three languages together."""
    folder = HERE / "tokenizer"
    if not (folder / "tokenizer_config.json").exists():
        inner = tokenizers.BertWordPieceTokenizer(lowercase=False)
        inner.train_from_iterator(texts, vocab_size=VOCAB, min_frequency=2, show_progress=False)
        folder.mkdir(parents=True, exist_ok=True)
        inner.save(str(folder / "tokenizer.json"))
        roles = {f"{role}_token": f"[{role.upper()}]" for role in ("cls", "sep", "mask", "pad", "unk")}
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **roles}))
    return folder


def base_and_languages() -> Path:
    """The encoder's folder; beside it an adapter for each language."""
    texts = {each: [{"text": " ".join(row["tokens"])} for row in tagged(f"wikiann_en_de_nl/{each}/train.txt")] for each in LANGUAGES}
    all_rows = [row for rows in texts.values() for row in rows]
    masked: dict[str, Any] = {"objective": {"kind": "masked"}, "seed": 0}
    training = {"rows": 64, "weight_decay": 0.01, "warmup": 0.06, "log_every": 50}
    stage(
        HERE / "base", **masked, model=SIZES | {"tokenizer": str(tokenizer([row["text"] for row in all_rows]))}, tuning="full",
        data={"path": str(write(HERE / "all.jsonl", all_rows)), "length": LENGTH, "held_out": 200},
        training=training | {"steps": STEPS, "rate": 1e-3},
    )  # fmt: skip
    for each, rows in texts.items():
        stage(
            HERE / each, **masked, model=str(HERE / "base"), tuning={"kind": "mad_x"},
            data={"path": str(write(HERE / f"{each}.jsonl", rows)), "length": LENGTH, "held_out": 200},
            training=training | {"steps": LANGUAGE_STEPS, "rate": 1e-3},
        )  # fmt: skip
    return HERE / "base"


def with_task(base: Path, language: str, seed: int, folder: Path) -> tuple[Model, Tag]:
    """The encoder with an NER adapter, trained on English (or read back), on a language's adapter or on none."""
    path = write(HERE / "ner.jsonl", tagged("wikiann_en_de_nl/en/train.txt"))
    stream = open_stream(Data(path=str(path), length=LENGTH, held_out=0), seed)
    objective = Tag().prepare(stream)
    seed_all(seed)
    model = load(str(base))
    for each in LANGUAGES if language else ():
        read(model.anatomy, HERE / each / "adapter", each)
    model.net.add_head("tag", objective.heads()["tag"])
    attached = tune(model, TASK, "ner")
    model.anatomy.activate(*filter(None, [language, "ner"]))
    if (folder / "adapter").is_dir():
        attached.load(folder / "adapter")
    else:
        training = Training(steps=TASK_STEPS, rows=32, rate=1e-3, warmup=0.06, log_every=50)
        train(model, attached, objective, objective.batches(stream, model, Size(rows=32), LENGTH), training, folder)
        attached.save(folder / "adapter")
    return model, objective


def counts(model: Model, objective: Tag, language: str, names: list[str]) -> list[list[int]]:
    """Right, predicted and true entities of each test sentence, with these adapters at work."""
    rows = tagged(f"wikiann_en_de_nl/{language}/test.txt")[:TESTED]
    found: dict[int, list[int]] = {}
    with evaluating(model), model.anatomy.using(*names):
        for batch in once(objective, rows, model, LENGTH):
            hidden = model.net.hidden(**objective.inputs(batch))
            for example, guess in zip(batch.examples, objective.predict(hidden, model.net.heads, batch), strict=True):
                guessed, wanted = entities(guess), entities(rows[example.row]["tags"][: len(guess)])
                found[example.row] = [len(guessed & wanted), len(guessed), len(entities(rows[example.row]["tags"]))]
    return [found[i] for i in range(len(rows))]


def of_seed(base: Path, seed: int) -> dict[str, dict[str, list[list[int]]]]:
    model, objective = with_task(base, "en", seed, HERE / f"ner-{seed}")
    tests: dict[str, dict[str, list[list[int]]]] = {}
    for each in LANGUAGES:
        tests[each] = {
            "swapped": counts(model, objective, each, [each, "ner"]),
            "English left": counts(model, objective, each, ["en", "ner"]),
            "taken out": counts(model, objective, each, ["ner"]),
        }
    alone, objective = with_task(base, "", seed, HERE / f"ner-alone-{seed}")
    for each in LANGUAGES:
        tests[each]["never one"] = counts(alone, objective, each, ["ner"])
    return tests


def f1(count_N3: np.ndarray) -> float:
    right, guessed, true = count_N3.sum(0)
    return 2 * right / max(1, guessed + true)


def main() -> None:
    base = base_and_languages()
    found = [remembered(HERE / f"tests-{seed}.json", lambda seed=seed: of_seed(base, seed)) for seed in SEEDS]
    ways = list(found[0]["en"])
    lines = [f"| test | {' | '.join(ways)} | swapped − English left | swapped − never one |", "|---|" + "---|" * (len(ways) + 2)]
    for each in LANGUAGES:
        of_way = {way: np.array([tests[each][way] for tests in found]) for way in ways}  # (seeds, sentences, 3)
        scores = [spread([f1(one) for one in of_way[way]]) for way in ways]

        def gap(first: str, second: str, of_way: dict[str, np.ndarray] = of_way) -> str:
            def difference(chosen: np.ndarray) -> float:
                return float(np.mean([f1(a[chosen]) - f1(b[chosen]) for a, b in zip(of_way[first], of_way[second], strict=True)]))

            return told(interval(of_way[first].shape[1], difference))

        lines.append(f"| {each} | {' | '.join(scores)} | {gap('swapped', 'English left')} | {gap('swapped', 'never one')} |")
    losses = {name: json.loads((HERE / name / "result.json").read_text()) for name in ("base", *LANGUAGES)}
    told_losses = ", ".join(f"{name} {one['before']['loss']:.2f} to {one['after']['loss']:.2f}" for name, one in losses.items())
    text = f"""# MAD-X on wikiann (English, German, Dutch)

BERT of {SIZES["layers"]} layers, width {SIZES["width"]}, {VOCAB} word pieces, from nothing: {STEPS} steps of 64 sentences of the three languages
(2,500 each) with `masked`; a language adapter each, {LANGUAGE_STEPS} steps; an English NER adapter, {TASK_STEPS} steps of 32 sentences, seeds
{", ".join(map(str, SEEDS))}. Masked loss, held out, nats: {told_losses}. F1 of whole entities in percent on {TESTED} test sentences, mean ± standard
error over seeds; differences in points with 95 % intervals by the bootstrap over sentences. Budget: a tenth of a core for an hour.

{chr(10).join(lines)}

swapped: the test's language adapter under the English task adapter. English left: no swap. taken out: no language adapter at the test.
never one: the task adapter trained and tested without any.
"""
    (RESULTS / "madx.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
