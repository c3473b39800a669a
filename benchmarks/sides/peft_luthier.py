"""Any tuning method with Luthier, from given start values: `sft_luthier` with another method."""

import argparse
import json

import torch
from safetensors.torch import load_file

import luthier
from benchmarks.sides.sft_luthier import rounds


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("method", "model", "start", "data", "dtype"):
        parser.add_argument(f"--{name}")
    for name in ("steps", "batch"):
        parser.add_argument(f"--{name}", type=int)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = luthier.load(args.model, dtype=args.dtype)
    attached = luthier.tune(model, json.loads(args.method))
    for parameter in attached.parameters.values():
        parameter.data = parameter.data.float()  # as training keeps it, so that no start value is rounded
    attached.load_state(load_file(f"{args.start}/state.safetensors"))
    rounds(model, args.data, args.dtype, args.steps, args.batch)


if __name__ == "__main__":
    main()
