"""Forward, and forward with backward, against transformers: equal weights, equal tokens, equal losses.

`python -m benchmarks.models [--models bert-base gpt2 ...] [--dtype float32] [--rounds 5] [--threads 1]`. Eight documents of the lengths that rows of
alpaca_gpt4_en have, cut at 256 (their eighths, so the same on every machine), right-padded for the peer. Forward gives the scores of every
real token; training is the model's own task (next token, or 15% masked tokens) without dropout, gradients of all parameters.
"""

import argparse
import tempfile
import time

import torch

from benchmarks._rounds import Side, interleaved, keep, median, table
from benchmarks.sides.models_transformers import MODELS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rows = [row for name in args.models for row in compare(name, args.dtype, args.rounds, args.threads)]
    head = ["model", "work", "Luthier tokens/s", "peer tokens/s", "ratio", "worst round", "Luthier peak", "peer peak", "ratio", "loss gap"]
    keep(
        "models",
        f"# Models against transformers, 8 documents of at most 256 tokens, {args.dtype}\n\n{note(args.rounds, args.threads)}\n\n{table(head, rows)}",
    )


def note(rounds: int, threads: int) -> str:
    return (
        f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {threads} thread(s), {rounds} round(s) after one step to warm up; peer: "
        "transformers, right-padded batches, its default attention. Real tokens a second of processor time, median of the rounds; ratios are "
        "what counts. Peaks are those of the whole process after that work."
    )


def compare(name: str, dtype: str, rounds: int, threads: int) -> list[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        return [line(name, work, folder, dtype, rounds, threads) for work in ("forward", "forward + backward")]


def line(name: str, work: str, folder: str, dtype: str, rounds: int, threads: int) -> list[str]:
    arguments = [folder, name, dtype, work]
    peer = Side("models_transformers", arguments, threads=threads)  # first: it makes the weights
    ours = Side("models_luthier", arguments, threads=threads)
    answers = interleaved([ours, peer], rounds)
    rates = {side.name: [answer["tokens"] / answer["seconds"] for answer in answers[side.name]] for side in (ours, peer)}
    peaks = {side.name: max(answer["peak_bytes"] for answer in answers[side.name]) for side in (ours, peer)}
    ratios = [a / b for a, b in zip(rates[ours.name], rates[peer.name], strict=True)]
    gap = abs(ours.ready["loss"] - peer.ready["loss"])
    row = [
        name, work, f"{median(rates[ours.name]):.0f}", f"{median(rates[peer.name]):.0f}", f"{median(ratios):.2f}x", f"{min(ratios):.2f}x",
        f"{peaks[ours.name] / 1e9:.2f} GB", f"{peaks[peer.name] / 1e9:.2f} GB", f"{peaks[ours.name] / peaks[peer.name]:.2f}x", f"{gap:.1e}",
    ]  # fmt: skip
    print(" | ".join(row), [round(ratio, 2) for ratio in ratios], ours.ready["loss"], peer.ready["loss"], flush=True)
    return row


if __name__ == "__main__":
    main()
