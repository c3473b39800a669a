"""Pickle checkpoints to safetensors. The pickle is opened by a child process, and only as far as weights go (torch's weights_only).

`python -m luthier.sources.convert PICKLE SAFETENSORS` is that child.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.sources.directory import INDEX, PICKLES, SINGLE, is_weights, read_json
from luthier.sources.save import replace_folder, write_json
from luthier.sources.tensor_files import Safetensors, write_safetensors

TEXT = ("*.json", "*.txt", "*.model", "*.jinja")
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")  # keys under which training scripts keep the weights
# Adapters' pickles have names of their own, peft's and the library adapters'; so have the files that both write instead.
ADAPTERS = {
    "adapter_model.bin": "adapter_model.safetensors",
    "pytorch_adapter.bin": "adapter.safetensors",
    "pytorch_model_head.bin": "model_head.safetensors",
    "pytorch_model_adapter_fusion.bin": "model_adapter_fusion.safetensors",
}
REFUSED = 3  # exit code of the child: the file holds more than weights


def convert_pickles(source: Path, out: Path) -> None:
    """The pickles of a folder (or one file) as safetensors in a new folder, its config and tokenizer files beside them."""
    folder, files = (source, pickles(source)) if source.is_dir() else (source.parent, [source])
    if not files:
        raise FileNotFoundError(f"{source}: no pickle here ({', '.join(f'*{end}' for end in PICKLES)})")
    if out.resolve() == folder.resolve():
        raise ValueError(f"{out} is where the pickles are; name another folder")
    replace_folder(out, lambda place: fill(place, folder, files), sum(file.stat().st_size for file in files))


def pickles(folder: Path) -> list[Path]:
    """The weight files of a folder: an adapter's, those its index names, or all."""
    if any((folder / name).is_file() for name in ADAPTERS):
        return [folder / name for name in ADAPTERS if (folder / name).is_file()]
    indices = [path for path in folder.glob("*.index.json") if path.name.endswith(".bin.index.json")]
    if indices:
        named = read_json(indices[0]).get("weight_map", {})
        return [folder / name for name in sorted(set(named.values()))]
    return [path for path in sorted(folder.iterdir()) if path.suffix in PICKLES and is_weights(path)]


def fill(place: Path, folder: Path, files: list[Path]) -> None:
    sharded = len(files) > 1 and not any(file.name in ADAPTERS for file in files)
    names = [
        f"model-{i + 1:05}-of-{len(files):05}.safetensors" if sharded else ADAPTERS.get(file.name, SINGLE) for i, file in enumerate(files)
    ]
    for file, name in zip(files, names, strict=True):
        in_child(file, place / name)
    if sharded:
        specs = {name: Safetensors([place / name]).specs for name in names}
        total = sum(spec.bytes for each in specs.values() for spec in each.values())
        where = {tensor: name for name in names for tensor in specs[name]}
        write_json(place / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
    for pattern in TEXT:
        for path in folder.glob(pattern):
            if not path.name.endswith(".index.json"):
                shutil.copyfile(path, place / path.name)


def in_child(pickle: Path, out: Path) -> None:
    command = [sys.executable, "-m", "luthier.sources.convert", str(pickle), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == REFUSED:
        raise ValueError(f"{pickle}: {done.stderr.strip()}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise OSError(f"{pickle} could not be converted (exit code {done.returncode}): {last}")


def child(pickle: str, out: str) -> str | None:
    """Reads weights only, writes safetensors; a sentence where the file holds anything else."""
    import pickle as module
    import warnings
    import zipfile

    import torch

    warnings.simplefilter("ignore")
    try:
        held = torch.load(pickle, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(pickle))
    except module.UnpicklingError as error:
        return f"it holds more than weights, or is damaged, so it was not opened ({first_line(error)})"
    except Exception as error:  # torch and pickle raise all kinds on a damaged file
        return f"it is damaged or no torch file ({first_line(error)})"
    tensors = weights(held)
    if not tensors:
        return f"no weights in it; it holds {json.dumps(sorted(map(str, held))[:5]) if isinstance(held, Mapping) else type(held).__name__}"
    write_safetensors(out, tensors)
    return None


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def weights(held: Any) -> dict[str, Any]:
    """The tensors by name, from whichever key a training script put them under; a copy of a tied one is left out."""
    import torch

    while isinstance(held, Mapping) and (key := next((key for key in WRAPPERS if isinstance(held.get(key), Mapping)), None)):
        held = held[key]
    found = {str(name): value for name, value in held.items() if isinstance(value, torch.Tensor)} if isinstance(held, Mapping) else {}
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, value in list(found.items()):
        first = seen.setdefault((value.data_ptr(), tuple(value.shape)), name)
        if first != name and name.startswith(("lm_head.", "cls.predictions.decoder.")) and value.numel():
            del found[name]
    return found


if __name__ == "__main__":
    told = child(*sys.argv[1:])
    if told:
        sys.stderr.write(told)
        sys.exit(REFUSED)
