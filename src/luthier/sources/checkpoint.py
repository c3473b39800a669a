"""A checkpoint on disk: a config in Hugging Face's config.json form, tensors by stored name, and how to make the tokenizer.

Opening one reads headers only and imports no torch; a tensor is read when it is asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.data.template import Template
    from luthier.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Spec:
    """What is known of a stored tensor without reading it: shape, format as its file calls it (F32, BF16, Q4_1 ...), bytes."""

    shape: tuple[int, ...]
    kind: str
    bytes: int


class Tensors(ABC, Mapping[str, "Tensor"]):
    """Stored tensors by name, read one by one from a memory-mapped file."""

    specs: dict[str, Spec]

    @abstractmethod
    def read(self, name: str, dtype: "torch.dtype | None" = None) -> "Tensor":
        """The tensor in `dtype` (None: as stored; quantised ones as float32); a view of the file where nothing must be computed."""

    def __getitem__(self, name: str) -> "Tensor":
        if name not in self.specs:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


@dataclass
class Checkpoint:
    """`name` is where it came from, for messages; `make_tokenizer` builds the tokenizer when it is first asked for."""

    name: str
    config: dict[str, Any]
    tensors: Tensors
    make_tokenizer: Callable[[], "Tokenizer | None"]

    @cached_property
    def tokenizer(self) -> "Tokenizer | None":
        return self.make_tokenizer()

    @cached_property
    def template(self) -> "Template | None":
        """The chat template that came with the tokenizer, if any."""
        return None if self.tokenizer is None else template_of(self.tokenizer, self.name)


def template_of(tokenizer: "Tokenizer", name: str) -> "Template | None":
    """The chat template that the tokenizer's files carry, if any; ValueError, naming where it came from, when it is not a template."""
    from luthier.data.template import Template

    source = tokenizer.chat_template
    try:
        return None if source is None else Template(name, source, specials=tokenizer.named())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def some(names: list[str], most: int = 5) -> str:
    """A list of names for a sentence: the first few, and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
