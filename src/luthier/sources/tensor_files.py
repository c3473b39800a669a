"""safetensors files, one or several to a model: read memory-mapped, written in one pass with a checksum for every tensor.

Format: eight bytes of header length, a JSON header of {name: dtype, shape, data_offsets}, the data. The header is compared with the
file's size before anything is read. Files that Luthier wrote carry the CRC-32 of every tensor, so that one flipped bit is found.
"""

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from luthier.sources.checkpoint import Spec, Tensors, some

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8,
}  # fmt: skip
CHECKSUMS = "luthier.crc32"  # the metadata key


class Safetensors(Tensors):
    """The tensors of one or several safetensors files."""

    def __init__(self, files: list[Path]):
        self.specs: dict[str, Spec] = {}
        self.file: dict[str, Path] = {}
        self.checksums: dict[str, str] = {}
        self._open: dict[Path, Any] = {}
        for path in files:
            specs, metadata = read_header(path)
            twice = sorted(specs.keys() & self.specs.keys())
            if twice:
                raise ValueError(f"{path}: the tensors {some(twice)} stand in {self.file[twice[0]].name} too; remove one of the files")
            self.specs |= specs
            self.file |= dict.fromkeys(specs, path)
            self.checksums |= read_checksums(path, metadata)

    def read(self, name: str, dtype: "torch.dtype | None" = None) -> "Tensor":
        path = self.file[name]
        try:
            tensor = self._opened(path).get_tensor(name)
        except Exception as error:  # safetensors raises its own error class, which is a plain Exception
            damaged(path, f"tensor {name!r} cannot be read ({error})")
        if name in self.checksums and checksum(self.specs[name], tensor) != self.checksums[name]:
            damaged(path, f"the values of tensor {name!r} are not those that were saved (their checksum differs)")
        return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)

    def _opened(self, path: Path) -> Any:
        if path not in self._open:
            from safetensors import safe_open

            self._open[path] = safe_open(path, framework="pt")
        return self._open[path]


def damaged(path: Path, what: str) -> NoReturn:
    raise ValueError(f"{path} is damaged or truncated: {what}. Fetch or copy the file again")


def read_header(path: Path) -> tuple[dict[str, Spec], dict[str, str]]:
    """Specs by name and the file's own metadata, after comparing every entry with the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= size - 8:
            damaged(path, f"its header should have {length} bytes and the file has {size}")
        raw = file.read(length)
    try:
        entries = json.loads(raw, object_pairs_hook=lambda pairs: unique(path, pairs))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        damaged(path, f"its header is not JSON ({error})")
    if not isinstance(entries, dict):
        damaged(path, "its header is not a table of tensors")
    metadata = entries.pop("__metadata__", {})
    specs: dict[str, Spec] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        specs[name], begin = read_entry(path, name, entry, size - 8 - length)
        ranges.append((begin, begin + specs[name].bytes, name))
    expected = 0
    for begin, end, name in sorted(ranges):
        if begin != expected:
            damaged(path, f"tensor {name!r} starts at byte {begin} of the data, expected {expected}")
        expected = end
    if expected != size - 8 - length:
        damaged(path, f"its tensors need {expected} bytes and the file has {size - 8 - length}")
    return specs, metadata if isinstance(metadata, dict) else {}


def unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        damaged(path, "a name stands twice in its header")
    return table


def read_entry(path: Path, name: str, entry: Any, size: int) -> tuple[Spec, int]:
    """The spec of one tensor and where its data begins."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            damaged(path, f"the entry of tensor {name!r} is not dtype, shape and data_offsets")
    if kind not in SIZES:
        damaged(path, f"tensor {name!r} has the unknown type {kind!r}")
    if not all(isinstance(n, int) and n >= 0 for n in shape) or math.prod(shape) * SIZES[kind] != end - begin:
        damaged(path, f"tensor {name!r} of shape {tuple(shape)} in {kind} does not fit its {end - begin} bytes")
    if not 0 <= begin <= end <= size:
        damaged(path, f"tensor {name!r} ends at byte {end} of the data, but the file has {size}")
    return Spec(tuple(shape), kind, end - begin), begin


def read_checksums(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    if CHECKSUMS not in metadata:
        return {}
    try:
        return dict(json.loads(metadata[CHECKSUMS]))
    except (TypeError, ValueError):
        damaged(path, "its list of checksums cannot be read")


def checksum(spec: Spec, tensor: "Tensor") -> str:
    """CRC-32 of a tensor's shape, type and bytes."""
    from luthier.core import native  # with torch, which is here by now

    start = zlib.crc32(f"{spec.kind}{list(spec.shape)}".encode())
    return f"{native.crc32(raw_bytes(tensor), start):08x}"


def raw_bytes(tensor: "Tensor") -> memoryview:
    import torch

    return memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def kind_of(dtype: "torch.dtype") -> str:
    import torch

    kinds = {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
        torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    }  # fmt: skip
    if dtype not in kinds:
        raise ValueError(f"{dtype} has no place in a safetensors file; there are {', '.join(map(str, kinds))}")
    return kinds[dtype]


def write_safetensors(path: str | Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Writes one file, tensor by tensor (no second copy of the model in memory), and waits until it is on disk.

    OSError where the disk is full; the caller writes to a temporary place and renames (see save.py).
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # wide types first keep every tensor aligned
    specs = {name: Spec(tuple(tensors[name].shape), kind_of(tensors[name].dtype), tensors[name].nbytes) for name in order}
    sums = {name: checksum(specs[name], tensors[name]) for name in order}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {}), CHECKSUMS: json.dumps(sums)}}
    at = 0
    for name, spec in specs.items():
        header[name] = {"dtype": spec.kind, "shape": list(spec.shape), "data_offsets": [at, at + spec.bytes]}
        at += spec.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(raw_bytes(tensors[name]))
        file.flush()
        os.fsync(file.fileno())
