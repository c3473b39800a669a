"""How a run learns: its length, the size of a step, the optimizer, the schedule, the precision, and what is kept. No torch here."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Training:
    """Settings of the one training loop. Exactly one of steps and epochs, exactly one of tokens and rows."""

    steps: int | None = None  # optimizer steps
    epochs: float | None = None  # passes over the data
    tokens: int | None = None  # tokens per optimizer step
    rows: int | None = None  # rows of the data per optimizer step
    micro_tokens: int = 4096  # at most so many tokens at once; a step of more is accumulated

    optimizer: Literal["adamw", "adafactor", "sgd"] = "adamw"
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)  # adamw
    eps: float = 1e-8  # adamw
    momentum: float = 0.0  # sgd
    relative: bool = False  # adafactor: rates relative to the size of each parameter
    paged: bool = False  # the optimizer's memory beyond resident_mb lies in a file of the run's folder, on a GPU run in the CPU's memory
    resident_mb: int = 0  # MiB of it that stay where the weights are
    weight_decay: float = 0.0  # never on biases and norms
    clip: float = 1.0  # global norm of the gradients; 0: no clipping

    schedule: Literal["constant", "linear", "cosine", "wsd", "noam"] = (
        "linear"  # noam: rate is its highest, width^-0.5 * warmup^-0.5 in the paper
    )
    warmup: float = 0.0  # below 1: a share of all steps; else a number of steps
    decay: float = 0.1  # wsd: the last share of all steps
    floor: float = 0.0  # cosine and wsd end at this share of the rate

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of frozen weights and activations; what is trained stays fp32
    recompute: bool = False  # activations once more in backward, for memory
    ema: float = 0.0  # decay of the running mean of the weights, which is then evaluated and saved; 0: none

    evaluate_every: int = 0  # steps; 0: before the first step and after the last
    save_every: int = 0  # steps; 0: at the end, when interrupted, and at the best held-out loss
    keep: int = 2  # newest checkpoints kept, besides the best
    result: Literal["last", "best"] = "last"  # whose weights the run hands over
    log_every: int = 1  # steps between two lines of metrics.jsonl
    tensorboard: bool = False  # also write event files (pip install luthier[track])

    def __post_init__(self) -> None:
        for first, second in (("steps", "epochs"), ("tokens", "rows")):
            given = [name for name in (first, second) if getattr(self, name) is not None]
            if len(given) != 1:
                found = "both are given" if given else "neither is given"
                raise ValueError(f"training needs exactly one of {first} and {second}; {found}")
        for name in ("steps", "epochs", "tokens", "rows", "micro_tokens", "keep", "log_every"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"training.{name}={value} must be above 0")
        for name in ("rate", "weight_decay", "clip", "warmup", "evaluate_every", "save_every", "resident_mb"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"training.{name}={getattr(self, name)} must be 0 or more")
        for name in ("momentum", "ema", "decay", "floor"):
            if not 0 <= getattr(self, name) <= 1 or (name in ("momentum", "ema") and getattr(self, name) == 1):
                raise ValueError(f"training.{name}={getattr(self, name)} must lie between 0 and 1")
        if self.resident_mb and not self.paged:
            raise ValueError(
                f"training.resident_mb={self.resident_mb} goes with paged: true; without it all of the optimizer's memory is resident"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"training.betas={list(self.betas)} must each lie in [0, 1)")
