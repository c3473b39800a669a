"""LoRA SFT as transformers and peft users write it: right-padded batches, labels -100 on the prompt and the padding."""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks._rounds import serve


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "adapter", "rows", "dtype"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    args = parser.parse_args()
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    model = PeftModel.from_pretrained(base, args.adapter, is_trainable=True).train()
    rounds(model, args.rows, args.steps, args.batch)


def rounds(model: Any, path: str, steps: int, size: int, before_zero: Callable[[int], object] = lambda step: None) -> None:
    """One step to warm up, then so many of them at each "go". before_zero: what a method does once its optimizer has stepped, from 1."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    with open(path) as file:
        rows = json.load(file)
    batches = enumerate([rows[i : i + size] for i in range(0, len(rows), size)], 1)

    def step() -> tuple[float, int]:
        number, batch = next(batches)
        longest = max(len(ids) for _, ids in batch)
        x = torch.full((len(batch), longest), 2)
        y, mask = torch.full_like(x, -100), torch.zeros_like(x)
        for i, (prompt, ids) in enumerate(batch):
            x[i, : len(ids)], mask[i, : len(ids)] = torch.tensor(ids), 1
            y[i, prompt : len(ids)] = torch.tensor(ids[prompt:])
        loss = model(input_ids=x, attention_mask=mask, labels=y).loss
        loss.backward()
        optimizer.step()
        before_zero(number)
        optimizer.zero_grad()
        return loss.item(), sum(len(ids) for _, ids in batch)

    first, _ = step()  # warm-up

    def work() -> dict:
        begun, used = time.perf_counter(), time.process_time()
        done = [step() for _ in range(steps)]
        took = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - used}
        return took | {"tokens": sum(n for _, n in done), "losses": [loss for loss, _ in done]}

    serve({"losses": [first]}, work)


if __name__ == "__main__":
    main()
