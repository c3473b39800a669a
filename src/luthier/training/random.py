"""The state of every random generator, for a resume to the bit: torch (CPU, CUDA), numpy, Python."""

import random
from typing import Any

import numpy
import torch


def seed_all(seed: int) -> None:
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # CUDA too


def state() -> dict[str, Any]:
    """Tensors and JSON values."""
    name, keys, *rest = numpy.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.tensor([int(key) for key in keys]), *rest],
        "python": random.getstate(),
    }


def restore(saved: dict[str, Any]) -> None:
    torch.set_rng_state(saved["torch"])
    if len(saved["cuda"]) == torch.cuda.device_count() and saved["cuda"]:
        torch.cuda.set_rng_state_all(saved["cuda"])
    name, keys, *rest = saved["numpy"]
    numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
