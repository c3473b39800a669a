"""The states of a frozen net, document by document, computed once: kept in safetensors files, found again by net and document.

One folder for each net (a hash over all its weights), in it one file for each set of documents that were computed together; a document is
named by the hash of its tokens. Nothing goes stale: another net or another text has another name. A folder may be deleted at any time.
Legend: S states of a token (the embedding's and each layer's), N tokens of all documents, T of one, D width
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from luthier.core.transformer import Net
from luthier.sources.tensor_files import Safetensors, write_safetensors

STORED = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Documents:
    """Tokens of several documents, one after the other."""

    ids_N: Tensor
    types_N: Tensor | None
    lengths: tuple[int, ...]

    @property
    def keys(self) -> list[str]:
        parts = zip(self.ids_N.cpu().split(list(self.lengths)), self._types(), strict=True)
        return [hashlib.blake2b(ids.numpy().tobytes() + types, digest_size=16).hexdigest() for ids, types in parts]

    def chosen(self, which: Sequence[int]) -> "Documents":
        keep_N = torch.tensor([i in which for i in range(len(self.lengths))]).repeat_interleave(torch.tensor(self.lengths))
        keep_N = keep_N.to(self.ids_N.device)
        types_N = None if self.types_N is None else self.types_N[keep_N]
        return Documents(self.ids_N[keep_N], types_N, tuple(self.lengths[i] for i in sorted(which)))

    def _types(self) -> list[bytes]:
        if self.types_N is None:
            return [b""] * len(self.lengths)
        return [types.numpy().tobytes() for types in self.types_N.cpu().split(list(self.lengths))]


class States:
    """What the last `last` layers of a net say about documents (0: all of them, and the embedding), from disk where it is there."""

    def __init__(self, net: Net, cache: str, last: int, stored: str):
        self.net, self.last, self.dtype = net, last, STORED[stored]
        self.root = Path(cache).expanduser()
        self.folder: Path | None = None
        self.files = Safetensors([])

    def __call__(self, documents: Documents) -> Tensor:
        """(S, N, D)"""
        if self.folder is None:
            self._open()
        keys = documents.keys
        missing = [i for i, key in enumerate(keys) if key not in self.files.specs]
        missing = list({keys[i]: i for i in missing}.values())
        if missing:
            self._keep(documents.chosen(missing), [keys[i] for i in sorted(missing)])
        found = torch.cat([self.files.read(key) for key in keys], dim=1)
        parameter = next(self.net.parameters())
        return found.to(parameter.device, parameter.dtype)

    def _open(self) -> None:
        self.folder = self.root / f"{fingerprint(self.net)}-{self.last or 'all'}-{str(self.dtype).rpartition('.')[2]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._add(sorted(self.folder.glob("*.safetensors")))

    def _add(self, files: list[Path]) -> None:
        for path in files:
            more = Safetensors([path])
            for name in more.specs.keys() & self.files.specs.keys():  # two runs computed it at the same time
                del more.specs[name]
            self.files.specs |= more.specs
            self.files.file |= dict.fromkeys(more.specs, path)
            self.files.checksums |= more.checksums

    def _keep(self, documents: Documents, keys: list[str]) -> None:
        assert self.folder is not None
        states_SND = self.compute(documents).to("cpu", self.dtype)
        parts = {key: part.contiguous() for key, part in zip(keys, states_SND.split(list(documents.lengths), 1), strict=True)}
        path = self.folder / f"{hashlib.blake2b(''.join(keys).encode(), digest_size=16).hexdigest()}.safetensors"
        partial = path.with_suffix(f".partial-{os.getpid()}")
        try:
            write_safetensors(partial, parts)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        self._add([path])

    @torch.no_grad()
    def compute(self, documents: Documents) -> Tensor:
        types = None if documents.types_N is None else documents.types_N[None]
        states = self.net.states(documents.ids_N[None], lengths=documents.lengths, types=types)
        return torch.stack([state_BND[0] for state_BND in states[-self.last :]])


def fingerprint(net: Net) -> str:
    """A hash over the names and values of all weights but those of the heads, which the states do not depend on."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(net.state_dict().items()):
        if not name.startswith("heads."):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()
