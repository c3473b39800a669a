"""ELMo as it was published: a file of options (JSON) and one of weights (HDF5). Needs h5py (pip install h5py)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.sources.checkpoint import Checkpoint, Spec, Tensors
from luthier.sources.directory import read_json

if TYPE_CHECKING:
    from h5py import File

KINDS = {"float32": "F32", "float64": "F64", "float16": "F16"}


class HDF5(Tensors):
    """Tensors by their path in the file; a leading 1, which filters have, is left out."""

    def __init__(self, path: Path):
        try:
            import h5py
        except ImportError:
            raise ValueError(f"{path} is an HDF5 file, which h5py reads: pip install h5py") from None
        self.file: File = h5py.File(path)
        self.specs = {}

        def note(name: str, found: Any) -> None:
            if isinstance(found, h5py.Dataset):
                shape = tuple(found.shape[1:] if found.ndim == 4 else found.shape)
                self.specs[name] = Spec(shape, KINDS.get(str(found.dtype), str(found.dtype)), found.nbytes)

        self.file.visititems(note)

    def read(self, name: str, dtype: "torch.dtype | None" = None) -> Tensor:
        tensor = torch.from_numpy(self.file[name][()]).view(self.specs[name].shape)  # type: ignore[index]
        return tensor if dtype is None else tensor.to(dtype)


def published(folder: Path) -> tuple[Path, Path] | None:
    """The two files of a folder that holds ELMo in that form."""
    options, weights = (sorted(folder.glob(pattern)) for pattern in ("*options.json", "*weights.hdf5"))
    return (options[0], weights[0]) if len(options) == len(weights) == 1 else None


def open_hdf5(options: Path, weights: Path) -> Checkpoint:
    return Checkpoint(str(weights.parent), {"model_type": "elmo", **read_json(options)}, HDF5(weights), lambda: None)
