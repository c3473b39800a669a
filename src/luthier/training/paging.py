"""Paged optimizers: state beyond a budget lives outside memory. Dettmers et al. 2023, arXiv:2305.14314, section 3.

On a CPU run it lies in a memory-mapped file without a name, which ends with the process; on a GPU run in pinned memory of the CPU. For the
step it comes in page by page: some parameters of one group, moved by the optimizer itself, so the weights are the plain optimizer's to the bit.
"""

import ctypes
import mmap
import platform
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from luthier.config import RunFailed

PAGE = 64 * 2**20  # bytes of parameters whose state is in memory at once
SMALL = 4096  # a state of fewer bytes (a step's number) stays
ZEROS = bytes(2**20)


@dataclass
class Home:
    """Where one tensor of the state lives between steps."""

    tensor: Tensor
    mapped: mmap.mmap | None  # None: pinned memory

    def release(self) -> None:
        """Give the memory back; the file keeps the values."""
        if self.mapped is not None:
            self.mapped.madvise(mmap.MADV_DONTNEED)


class Paged:
    """An optimizer and the homes of its state. budget: bytes of it that stay in memory; folder: where the file is made."""

    def __init__(self, inner: Optimizer, budget: int, folder: Path | None):
        self.inner, self.budget, self.folder = inner, budget, folder
        self.kept: set[tuple[Tensor, str]] = set()
        self.kept_bytes = 0
        self.homes: dict[tuple[Tensor, str], Home] = {}
        self.file: Any = None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        return self.inner.state

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def step(self) -> None:
        groups = self.inner.param_groups
        try:
            for group in groups:
                for page in _pages(group["params"]):
                    self._bring(page)
                    self.inner.param_groups = [group | {"params": page}]
                    self.inner.step()
                    self.put_away(page)
        finally:
            self.inner.param_groups = groups

    def put_away(self, page: Sequence[Tensor]) -> None:
        """The state of these parameters goes to where it lives; what is new is kept while the budget lasts."""
        known = len(self.homes)
        for parameter in page:
            memory = self.state.get(parameter, {})
            for name, value in memory.items():
                key = (parameter, name)
                if not isinstance(value, Tensor) or value.nbytes < SMALL or key in self.kept:
                    continue
                if key not in self.homes and self.kept_bytes + value.nbytes <= self.budget:
                    self.kept.add(key)
                    self.kept_bytes += value.nbytes
                    continue
                if key not in self.homes:
                    self.homes[key] = self._home(value)
                home = self.homes[key]
                if value is not home.tensor:
                    home.tensor.copy_(value)
                    memory[name] = home.tensor
                home.release()
        if len(self.homes) > known:
            trim()

    def forget(self, parameter: Tensor) -> None:
        """Its state is about to have new tensors: where the old ones live is given back."""
        for name, value in self.state.get(parameter, {}).items():
            self.homes.pop((parameter, name), None)
            if (parameter, name) in self.kept:
                self.kept.remove((parameter, name))
                self.kept_bytes -= value.nbytes

    def _bring(self, page: Sequence[Tensor]) -> None:
        """From pinned memory onto the GPU. What is mapped comes in as the step reads it, and is changed where it is."""
        for parameter in page:
            memory = self.state.get(parameter, {})
            for name in memory:
                if (home := self.homes.get((parameter, name))) is not None and home.mapped is None:
                    memory[name] = home.tensor.to(parameter.device, copy=True)

    def _home(self, value: Tensor) -> Home:
        """A place like this tensor, its strides included."""
        if value.device.type != "cpu":
            return Home(torch.empty_like(value, device="cpu").pin_memory(), None)
        try:
            if self.file is None:
                if self.folder is not None:
                    self.folder.mkdir(parents=True, exist_ok=True)
                self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  it lives as long as the optimizer
                weakref.finalize(self, self.file.close)
            start = self.file.seek(0, 2)
            length = -(-value.nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            for written in range(0, length, len(ZEROS)):  # now, while a full disk is an error and not a signal
                self.file.write(ZEROS[: length - written])
            self.file.flush()
        except OSError as error:
            raise RunFailed(f"the optimizer's state does not fit on the disk ({self.folder}): {error.strerror}; make room") from error
        mapped = mmap.mmap(self.file.fileno(), length, offset=start)
        flat = torch.frombuffer(mapped, dtype=value.dtype, count=value.numel())
        return Home(flat.as_strided(value.shape, value.stride()), mapped)


def _pages(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    page: list[Tensor] = []
    for parameter in parameters:
        if page and sum(value.nbytes for value in page) + parameter.nbytes > PAGE:
            yield page
            page = []
        page.append(parameter)
    if page:
        yield page


def trim() -> None:
    """What was freed goes back to the system: glibc keeps aligned pieces of up to 32 MiB and cannot use them again."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
