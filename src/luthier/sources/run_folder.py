"""Folders that point at a base model: a run's (config.yaml with model/ or adapter/), or an adapter's alone (adapter_config.json)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from luthier.config import read_yaml
from luthier.sources.directory import read_json

COMPOSITION = "composition.json"  # of several adapters that are one


def resolve(source: str | Path) -> tuple[str | Path | dict, Path | None]:
    """(source of the whole weights, folder of an adapter for them or None)."""
    folder = Path(source).expanduser()
    if "://" in str(source) or not folder.is_dir():
        return source, None
    if (folder / "config.yaml").exists() and not (folder / "config.json").exists():
        return resolve_run(folder)
    found = next((name for name in ("adapter_config.json", COMPOSITION) if (folder / name).exists()), "")
    if found and not (folder / "config.json").exists():
        base = read_json(folder / found).get("base_model_name_or_path")
        if not base:
            raise ValueError(f"{folder}: {found} does not say what the adapter is for; load the base and give adapter={folder}")
        if str(base).startswith("fresh "):
            raise ValueError(
                f"{folder}: this adapter is for the {base} of one run, and its weights stand nowhere else; name the run's folder"
            )
        return base, folder
    return source, None


@contextmanager
def drawn_again(run: Path) -> Iterator[None]:
    """Inside, fresh weights come out as in the run of this folder, whose adapter is for them; other random numbers go on as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(read_yaml(run / "config.yaml").values.get("seed", 0)))
        yield


def resolve_run(folder: Path) -> tuple[str | Path | dict, Path | None]:
    if (folder / "model").is_dir():
        return folder / "model", None
    if not (folder / "adapter").is_dir():
        raise FileNotFoundError(f"{folder}: the run of this folder has not finished; resume it: luthier train RUN.yaml --resume auto")
    values = read_yaml(folder / "config.yaml").values
    base = values.get("model") if isinstance(values, dict) else None
    if not base:
        raise ValueError(f"{folder / 'config.yaml'}: it names no model, so the adapter has no base")
    return base, folder / "adapter"
