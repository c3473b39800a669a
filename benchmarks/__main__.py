"""All benchmarks, one after the other; each writes its table to benchmarks/results/."""

import importlib
import sys

NAMES = ("startup", "loading", "data", "generation", "models", "sft", "peft")

if __name__ == "__main__":
    arguments, sys.argv = sys.argv[1:], sys.argv[:1]
    for name in arguments or NAMES:
        importlib.import_module(f"benchmarks.{name}").main()
