"""transformers' side of the generation benchmark: `generate` as its documentation calls it."""

import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from benchmarks._rounds import serve


def main(folder: str, dtype: str, new: str, prompts: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    inputs = tokenizer(prompts.splitlines(), return_tensors="pt", padding=True)
    start, count = inputs["input_ids"].shape[1], int(new)

    def work(tokens: int = count) -> dict:
        settings = GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=2, pad_token_id=2)
        begun = time.perf_counter()
        out = model.generate(**inputs, generation_config=settings)
        return {"seconds": time.perf_counter() - begun, "rows": out[:, start:].tolist()}

    work(4)
    serve({}, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
