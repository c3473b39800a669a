"""Activation recomputation that repeats the batch's own settings. Chen et al. 2016, arXiv:1604.06174.

Which adapters are at work belongs to the batch and is kept in a context variable. Backward runs outside the block that set it (and on
CUDA on another thread), so the variables of the forward pass are kept with it and are in force again when it is repeated.
"""

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable, *args: Any) -> Any:
    """function(*args), of which only the arguments are kept for backward; it runs once more there, in the context of this call."""
    return checkpoint(partial(copy_context().run, function), *args, use_reentrant=False)
