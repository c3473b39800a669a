"""Folders that point at a base model: a run's (config.yaml with model/ or adapter/), or an adapter's alone (adapter_config.json)."""

from pathlib import Path

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
        return base, folder
    return source, None


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
