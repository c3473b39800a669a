"""Every tuning method that peft has against peft: the same rows, the same start values, the same optimizer, the same losses; and a grid.

`python -m benchmarks.peft [--methods lora dora ...] [--dtype float32 bfloat16] [--rounds 2] [--steps 1] [--rows 8]
[--grids NAME ...] [--grid-steps 4]`. SmolLM2-135M on the rows of `benchmarks.sft`. Each side is a process of its own with one thread; rounds take
turns, after one warm-up step each. What is measured is CPU time. Lines of methods, grids and dtypes that are not run stay in the table.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

import luthier
from benchmarks._rounds import RESULTS, Side, interleaved, keep, median, table
from benchmarks.sft import BATCH, ROLES, prepare

SEVEN = {"rank": 8, "alpha": 16.0, "roles": list(ROLES)}
METHODS: dict[str, dict[str, Any]] = {  # as in a run file; sides/peft_peft.py has the same as peft's configurations
    "lora": {"kind": "lora", **SEVEN},
    "rslora": {"kind": "lora", **SEVEN, "rslora": True},
    "dora": {"kind": "lora", **SEVEN, "dora": True},
    "pissa": {"kind": "lora", **SEVEN, "start": "pissa"},
    "adalora": {"kind": "adalora", "rank": 12, "target": 8, "warmup": 1, "final": 1},
    "qlora": {"kind": "qlora", "rank": 8},
    "ia3": {"kind": "ia3"},
    "prompt": {"kind": "prompt", "length": 20},
    "p_tuning": {"kind": "p_tuning", "length": 20},
    "prefix": {"kind": "prefix", "length": 20},
    "p_tuning_v2": {"kind": "p_tuning_v2", "length": 20},
}
VARIANTS: dict[str, dict[str, Any]] = METHODS | {
    "lora-4": {"kind": "lora", **SEVEN, "rank": 4},
    "lora-16": {"kind": "lora", **SEVEN, "rank": 16},
    "lora-qv": {"kind": "lora", **SEVEN, "roles": ["q", "v"]},
}
GRIDS = {  # name: its methods, and how many of the last blocks they are in (0: all)
    "eight methods": (("lora", "rslora", "dora", "adalora", "ia3", "prompt", "prefix", "p_tuning_v2"), 0),
    "last ten blocks": (("lora", "rslora", "dora", "pissa", "adalora", "lora-4", "lora-16", "lora-qv"), 10),
}
HEAD = [
    "method",
    "dtype",
    "rows a step",
    "Luthier tokens/s",
    "peft tokens/s",
    "ratio",
    "worst round",
    "Luthier peak",
    "peft peak",
    "ratio",
    "loss gap",
]
GRID_HEAD = [
    "grid",
    "dtype",
    "rows a step",
    "steps",
    "Luthier CPU",
    "peft CPU",
    "ratio",
    "Luthier peak",
    "peft peak",
    "Luthier last loss",
    "peft last loss",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--rows", type=int, default=BATCH)
    parser.add_argument("--grids", nargs="*", default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--grid-steps", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, steps = Path(name), max(1 + args.rounds * args.steps, args.grid_steps)
        made = prepare(folder, args.rows * steps)
        for dtype in args.dtype:
            for method in args.methods:
                show(HEAD, compare(made, folder, method, dtype, args))
            for grid in args.grids:
                show(GRID_HEAD, run_grid(made, folder, grid, dtype, args))


def show(head: list[str], line: list[str]) -> None:
    """Put a line into the page, as soon as it is known."""
    path = RESULTS / "peft.md"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    methods, grids = (merged(text, names, [line] if each is head else []) for each, names in ((HEAD, METHODS), (GRID_HEAD, GRIDS)))
    page = f"# Tuning methods against peft, SmolLM2-135M, AdamW\n\n{note()}\n\n{table(HEAD, methods)}"
    keep("peft", page + f"\n{grid_note()}\n\n{table(GRID_HEAD, grids)}" if grids else page)


def note() -> str:
    return (
        f"{time.strftime('%Y-%m-%d')}, one thread a side, torch {torch.__version__}; peer: transformers and peft, SDPA, no cache, no gradient checkpointing, "
        "right-padded batches; qlora over bitsandbytes' NF4 on the CPU. Real tokens a second of CPU time, median of the rounds; ratios are what counts. "
        "Low-rank methods: r=8 on seven roles (adalora 12 to 8). Prompts, P-tuning (LSTM) and prefixes: 20 tokens. Start values are the same, so that "
        "losses are equal step by step; their gap is the largest of all steps."
    )


def grid_note() -> str:
    told = "; ".join(f"{name}: {', '.join(methods)}" for name, (methods, _) in GRIDS.items())
    return (
        "Eight runs: one `luthier compare` against eight peft processes one after the other; CPU time with start-up and loading. "
        f"{told}. peft gets its rows as ids; Luthier makes them from texts, and writes logs, checkpoints, adapters and the table. "
        "Luthier's peak is that of one process with all eight runs, peft's that of its largest. Last losses are means; start values are each side's own."
    )


def merged(text: str, names: Collection[str], new: list[list[str]]) -> list[list[str]]:
    """The lines of these names in an earlier page, in this order, with the new ones in the place of those of the same name and dtype."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("|")]
    found = {tuple(line[:2]): line for line in [*lines, *new] if line[0] in names}
    return sorted(found.values(), key=lambda line: (line[1] != "float32", list(names).index(line[0])))


def compare(made: dict[str, str], folder: Path, method: str, dtype: str, args: argparse.Namespace) -> list[str]:
    total = max(1 + args.rounds * args.steps, 3)  # adalora shares out ranks over three steps at least
    start, section = starts(made, folder, method, total)
    common = ["--model", made["model"], "--start", start, "--dtype", dtype, "--steps", str(args.steps), "--batch", str(args.rows)]
    ours = Side("peft_luthier", [*common, "--method", json.dumps(section), "--data", made["data"]], threads=1)
    peer = Side("peft_peft", [*common, "--method", method, "--rows", made["rows"], "--total", str(total)], threads=1)
    answers = interleaved([ours, peer], args.rounds)
    rates = {side.name: [answer["tokens"] / answer["cpu_seconds"] for answer in answers[side.name]] for side in (ours, peer)}
    peaks = {side.name: max(answer["peak_bytes"] for answer in answers[side.name]) for side in (ours, peer)}
    losses = {
        side.name: side.ready["losses"] + [loss for answer in answers[side.name] for loss in answer["losses"]] for side in (ours, peer)
    }
    ratios = [a / b for a, b in zip(rates[ours.name], rates[peer.name], strict=True)]
    gap = max(abs(a - b) for a, b in zip(losses[ours.name], losses[peer.name], strict=True))
    print(method, dtype, [round(ratio, 2) for ratio in ratios], losses, peaks, flush=True)
    return [
        method, dtype, str(args.rows), f"{median(rates[ours.name]):.0f}", f"{median(rates[peer.name]):.0f}", f"{median(ratios):.2f}x", f"{min(ratios):.2f}x",
        f"{peaks[ours.name] / 1e9:.2f} GB", f"{peaks[peer.name] / 1e9:.2f} GB", f"{peaks[ours.name] / peaks[peer.name]:.2f}x", f"{gap:.1e}",
    ]  # fmt: skip


def starts(made: dict[str, str], folder: Path, method: str, total: int) -> tuple[str, dict[str, Any]]:
    """The folder of both sides' start values, and the method's section of a run file."""
    section = METHODS[method] | ({"steps": total} if method == "adalora" else {})
    torch.manual_seed(0)
    model = luthier.load(made["model"], dtype="float32")
    attached = luthier.tune(model, section)
    if method == "prefix":  # peft's words are narrower: what it has not is zero here, and stays so
        with torch.no_grad():
            width = attached.parameters["decoder.self.prefix.outer.weight"].shape[0] // (2 * len(model.net.blocks))  # type: ignore[arg-type]
            attached.parameters["decoder.self.prefix.words"][:, width:] = 0
            attached.parameters["decoder.self.prefix.inner.weight"][:, width:] = 0
    place = folder / method
    attached.save(place)
    save_file({name: value.contiguous() for name, value in attached.state().items()}, place / "state.safetensors")
    return str(place), section


def run_grid(made: dict[str, str], folder: Path, name: str, dtype: str, args: argparse.Namespace) -> list[str]:
    methods, blocks = GRIDS[name]
    sections = {method: VARIANTS[method] | ({"blocks": f"last {blocks}"} if blocks else {}) for method in methods}
    ours = ours_of(made, folder / f"{name}-{dtype}", sections, dtype, args)
    peer = peers_of(made, methods, blocks, dtype, args)
    print(name, dtype, ours, peer, flush=True)
    return [
        name, dtype, str(args.rows), str(args.grid_steps), f"{ours[0]:.0f} s", f"{peer[0]:.0f} s", f"{peer[0] / ours[0]:.2f}x",
        f"{ours[1] / 1e9:.2f} GB", f"{peer[1] / 1e9:.2f} GB", f"{ours[2]:.3f}", f"{peer[2]:.3f}",
    ]  # fmt: skip


def ours_of(
    made: dict[str, str], output: Path, methods: dict[str, Any], dtype: str, args: argparse.Namespace
) -> tuple[float, float, float]:
    """CPU seconds, peak bytes and mean last loss of one `luthier compare`."""
    precision = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    training = {"steps": args.grid_steps, "rows": args.rows, "rate": 1e-3, "clip": 0.0, "schedule": "constant", "precision": precision}
    data = {"path": made["data"], "shuffle": False, "held_out": 0}
    run = {"model": made["model"], "data": data, "objective": "chat", "training": training}
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({"output": str(output), "run": run, "methods": methods, "latency": False}))
    code = "from luthier.cli.main import app; from benchmarks._rounds import peak_bytes; app(standalone_mode=False); print(peak_bytes())"
    command = [sys.executable, "-c", code, "compare", str(file)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    told = process.stdout.read().split() if process.stdout else []
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        raise SystemExit(f"{' '.join(command)} failed; its message is above")
    lines = [json.loads((output / "cells" / f"{method}-seed0" / "metrics.jsonl").read_text().splitlines()[-1]) for method in methods]
    return usage.ru_utime + usage.ru_stime, int(told[-1]), sum(line["loss"] for line in lines) / len(lines)


def peers_of(
    made: dict[str, str], methods: tuple[str, ...], blocks: int, dtype: str, args: argparse.Namespace
) -> tuple[float, float, float]:
    """The same of one process after the other, each with the warm-up as its first step."""
    steps = args.grid_steps
    common = ["--model", made["model"], "--rows", made["rows"], "--dtype", dtype, "--steps", str(steps - 1), "--batch", str(args.rows)]
    answers, before = [], used()
    for method in methods:
        side = Side("peft_peft", [*common, "--method", method, "--total", str(steps), "--blocks", str(blocks)], threads=1)
        answers.append(side.round())
        side.close()
    return used() - before, max(answer["peak_bytes"] for answer in answers), sum(answer["losses"][-1] for answer in answers) / len(answers)


def used() -> float:
    """Seconds of CPU time of all processes that have ended under this one."""
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.ru_utime + times.ru_stime


if __name__ == "__main__":
    main()
