"""The header of a GGUF file: metadata and the table of tensors, read without numpy or torch.

Format: ggml's gguf.md, versions 2 and 3. Every number read is checked against the file's size, so a truncated or
damaged header ends in a sentence instead of a wrong model. (The gguf package's own reader takes seconds to open a file.)
"""

import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# Values and bytes a block of the types Luthier reads; the other types are known by name only, to refuse them in words.
BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q4_K": (256, 144),
    "Q6_K": (256, 210),
}
TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: its shape as PyTorch counts it (GGUF stores it reversed), its type, first byte and bytes."""

    shape: tuple[int, ...]
    kind: str
    start: int
    bytes: int


@dataclass
class Header:
    path: Path
    data: mmap.mmap  # private mapping of the whole file
    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Stored] = field(default_factory=dict)


def read_header(path: str | Path) -> Header:
    path = Path(path)
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < 24 or file.read(4) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file: it does not start with 'GGUF' and a header of 24 bytes")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    cursor = Cursor(path, data)
    version, tensors, pairs = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in (2, 3):
        cursor.fail(f"its version is {version}, and Luthier reads 2 and 3")
    if pairs * 13 > size or tensors * 24 > size:
        cursor.fail(f"its header promises {tensors} tensors and {pairs} metadata entries, more than its {size} bytes can hold")
    header = Header(path, data)
    for _ in range(pairs):
        key = cursor.text()
        if key in header.metadata:
            cursor.fail(f"the metadata key {key!r} stands twice")
        header.metadata[key] = cursor.value(cursor.number("I"))
    read_table(cursor, header, tensors)
    return header


def read_table(cursor: "Cursor", header: Header, count: int) -> None:
    entries = []
    for _ in range(count):
        name, rank = cursor.text(), cursor.number("I")
        if not name or not 1 <= rank <= 4:
            cursor.fail(f"tensor {name!r} has {rank} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(rank))[::-1]
        kind, offset = cursor.number("I"), cursor.number("Q")
        entries.append((name, shape, TYPES.get(kind, f"type {kind}"), offset))
    alignment = header.metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
        cursor.fail(f"general.alignment is {alignment!r}, not a multiple of 8")
    base, expected = -(-cursor.at // alignment) * alignment, 0
    refuse_types(header.path, {name: kind for name, _, kind, _ in entries})
    for name, shape, kind, offset in entries:
        values, size = BLOCKS[kind]
        if 0 in shape or shape[-1] % values:
            cursor.fail(f"tensor {name!r} has the shape {shape}, and {kind} needs rows of a multiple of {values}")
        length = math.prod(shape) // values * size
        if name in header.tensors:
            cursor.fail(f"tensor {name!r} stands twice")
        if offset != expected:  # the format lays tensors out in order, each padded to the alignment
            cursor.fail(f"tensor {name!r} starts at byte {offset} of the data, expected {expected}")
        if base + offset + length > len(header.data):
            cursor.fail(f"tensor {name!r} ends at byte {base + offset + length}, but the file has {len(header.data)}")
        header.tensors[name] = Stored(shape, kind, base + offset, length)
        expected = -(-(offset + length) // alignment) * alignment


def refuse_types(path: Path, kinds: dict[str, str]) -> None:
    foreign = {name: kind for name, kind in kinds.items() if kind not in BLOCKS}
    if foreign:
        name = next(iter(foreign))
        raise ValueError(
            f"{path}: tensor {name!r} is stored as {foreign[name]} ({len(foreign)} tensors as {', '.join(sorted(set(foreign.values())))}); "
            f"Luthier reads {', '.join(BLOCKS)}. Take the file in one of these, for example Q8_0 or Q4_K_M"
        )


class Cursor:
    """Reads forward through the header and knows when it would leave the file."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at = path, data, 4

    def fail(self, what: str) -> NoReturn:
        raise ValueError(f"{self.path} is damaged or truncated: {what} (near byte {self.at}). Fetch the file again")

    def take(self, count: int) -> int:
        """Moves on by `count` bytes; the place before them."""
        at = self.at
        if count > len(self.data) - at:
            self.fail(f"the header goes on past the end of the file ({len(self.data)} bytes)")
        self.at += count
        return at

    def number(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.data, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        length = self.number("Q")
        at = self.take(length)
        try:
            return self.data[at : at + length].decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"{length} bytes that should be text are not")

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            self.fail(f"a metadata value has the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in NUMBERS:
            layout = struct.Struct("<" + NUMBERS[inner])
            at = self.take(count * layout.size)
            return [item[0] for item in layout.iter_unpack(self.data[at : self.at])]
        if inner != STRING:
            self.fail(f"a metadata list holds the unknown type {inner}")
        return self.texts(count)

    def texts(self, count: int) -> list[str]:
        """Many strings at once: the vocabulary, in one tight loop."""
        if count * 8 > len(self.data) - self.at:
            self.fail(f"a list promises {count} texts, more than the file can hold")
        length = struct.Struct("<Q").unpack_from
        data, at, end, out = self.data, self.at, len(self.data), []
        try:
            for _ in range(count):
                size = length(data, at)[0]
                at += 8 + size
                if at > end:
                    self.fail("a list of texts goes on past the end of the file")
                out.append(str(data[at - size : at], "utf-8"))
        except (UnicodeDecodeError, struct.error):
            self.at = at
            self.fail(f"entry {len(out)} of a list of texts is not text")
        self.at = at
        return out
