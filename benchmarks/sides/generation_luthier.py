"""Luthier's side of the generation benchmark: greedy tokens, what it takes to lay the weights out included."""

import sys
import time

import torch

import luthier
from benchmarks._rounds import serve
from luthier.core.generate import generate_ids
from luthier.core.reader import Sampling


def main(folder: str, dtype: str, new: str, prompts: str) -> None:
    int8 = dtype == "int8"
    model = luthier.load(folder, dtype="bfloat16" if int8 else dtype)
    assert model.tokenizer is not None
    ids = [model.tokenizer.encode(prompt) for prompt in prompts.splitlines()]
    count = int(new)

    def work(tokens: int = count) -> dict:
        begun = time.perf_counter()
        rows = generate_ids(model.net, ids, Sampling(max_tokens=tokens, min_tokens=tokens, temperature=0), eos=[2], int8=int8)
        return {"seconds": time.perf_counter() - begun, "rows": rows}

    weights = sum(parameter.numel() for parameter in model.net.parameters())  # each is read once a step; a tied embedding counts once
    work(4)
    serve({"bytes": weights * (1 if int8 else torch.finfo(model.dtype).bits // 8), "threads": torch.get_num_threads()}, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
