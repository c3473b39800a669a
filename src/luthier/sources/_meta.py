"""Building a net without its weights: shapes only, on the meta device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Uninitialised(TorchFunctionMode):
    """Leaves out torch.nn.init: random numbers on the meta device mean nothing, and make torch import its compiler (seconds)."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":  # operators in C have no module
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def on_meta() -> Iterator[None]:
    with torch.device("meta"), Uninitialised():
        yield
