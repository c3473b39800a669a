"""A base with the adapter that was saved for it: what a run, the command line and `luthier.load` load models by."""

from pathlib import Path
from typing import Any

import torch

from luthier.sources.load import load_model
from luthier.sources.model import Model


def load(
    source: Any, adapter: str | Path | None = None, dtype: torch.dtype | str | None = None, device: str | torch.device = "cpu"
) -> Model:
    """load_model of any source, run and adapter folders included, and on top the adapter of a peft folder."""
    model = load_model(source, dtype, device, put_on)
    if adapter is not None:
        put_on(model, Path(adapter))
    return model


def put_on(model: Model, folder: Path) -> None:
    """Attaches the adapter of a folder, at work and not trainable. Its readers are imported here: most models are loaded without one."""
    from luthier.tuning import features
    from luthier.tuning._read import load_adapter

    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; an adapter is a folder with adapter_config.json and adapter_model.safetensors")
    if features.is_saved_in(folder):
        return features.put_on(model, folder)
    load_adapter(model, folder)
