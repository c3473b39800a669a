"""LoRA SFT with Luthier: its data, objective, tuning and training loop, as a run uses them."""

import argparse
import time

import luthier
from benchmarks._rounds import serve
from luthier.data.settings import Data
from luthier.data.stream import open_stream
from luthier.objectives._batch import Size
from luthier.objectives.chat import Chat
from luthier.sources.model import Model
from luthier.training.loop import advance
from luthier.training.precision import settle
from luthier.training.settings import Training
from luthier.training.state import State


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "adapter", "data", "dtype"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    args = parser.parse_args()
    model = luthier.load(args.model, adapter=args.adapter, dtype=args.dtype)
    assert model.attached is not None
    model.net.requires_grad_(False)
    for parameter in model.attached.parameters.values():
        parameter.requires_grad_(True)
    rounds(model, args.data, args.dtype, args.steps, args.batch)


def rounds(model: Model, data: str, dtype: str, steps: int, batch: int) -> None:
    """One step to warm up, then so many of them at each "go", over what is attached to the model."""
    attached = model.attached
    assert attached is not None
    precision = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    training = Training(steps=10_000, rows=batch, rate=1e-3, weight_decay=0.0, clip=0.0, schedule="constant", precision=precision)
    stream = open_stream(Data(path=data, held_out=0, shuffle=False), 0)
    objective = Chat().prepare(stream)
    settle(model.net, training.precision)
    model.net.fuse()
    batches = objective.batches(stream, model, Size(rows=batch), 1024)
    state = State.fresh(attached, batches, training)

    def step() -> tuple[float, int]:
        figures = advance(model.net, objective, state, training, training.steps, lambda: "")
        state.record.step += 1
        return figures["loss"], figures["tokens"]

    first, _ = step()  # warm-up

    def work() -> dict:
        begun, used = time.perf_counter(), time.process_time()
        done = [step() for _ in range(steps)]
        took = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - used}
        return took | {"tokens": sum(n for _, n in done), "losses": [loss for loss, _ in done]}

    serve({"losses": [first], "batches": "packed"}, work)


if __name__ == "__main__":
    main()
