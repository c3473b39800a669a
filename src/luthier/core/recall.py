"""Tensors that know how they were made, so that who needs them in backward can make them again instead of keeping them.

A norm or an activation is cheap to run twice and its result is as large as a product's: the sublayer that takes it in keeps the recipe.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Recipe = Callable[[], Tensor]


def by_hand(*tensors: Tensor) -> bool:
    """Whether backward comes for one of these and is ours to arrange: a compiler decides for itself what to keep, from plain operators."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors) and not torch.compiler.is_compiling()


def remember(made: Tensor, recipe: Recipe) -> Tensor:
    """Attach to `made` how to make it again. The recipe may hold only tensors that backward keeps anyhow."""
    made.recipe = recipe  # type: ignore[attr-defined]
    return made


def recipe_of(tensor: Tensor) -> Recipe | None:
    """The recipe, if nothing has touched the tensor since it was made (any operation makes a new tensor, without one)."""
    return getattr(tensor, "recipe", None)
