"""Optimizers over named groups of parameters: AdamW (fused; Loshchilov and Hutter 2019, arXiv:1711.05101), Adafactor (its own file), SGD.

The state is read and written by parameter name ("NAME/FIELD"), so that it survives a change in the order of parameters.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from luthier.training.adafactor import Adafactor
from luthier.training.paging import Paged
from luthier.training.settings import Training

Moving = Optimizer | Paged


class Group(Protocol):
    """What a tuning method says of a group of its parameters."""

    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> dict[str, nn.Parameter]: ...
    @property
    def rate(self) -> float | None: ...  # None: the run's
    @property
    def factor(self) -> float: ...  # on that rate


def build(training: Training, groups: Sequence[Group], folder: Path | None = None) -> Moving:
    """The optimizer over all groups; each is split in two, as biases and norms (one dimension) are not decayed. folder: for a paged one."""
    split = [part for group in groups for part in _split(training, group)]
    if not split:
        raise ValueError("nothing to train: the tuning method has no trainable parameter")
    moving = _plain(training, split)
    return Paged(moving, training.resident_mb * 2**20, folder) if training.paged else moving


def _plain(training: Training, split: list[dict]) -> Optimizer:
    if training.optimizer == "adafactor":
        return Adafactor(split, rate=training.rate, relative=training.relative)
    if training.optimizer == "sgd":
        return SGD(split, lr=training.rate, momentum=training.momentum)
    return AdamW(split, lr=training.rate, betas=training.betas, eps=training.eps, fused=True)


def _split(training: Training, group: Group) -> Iterator[dict]:
    rate = (training.rate if group.rate is None else group.rate) * group.factor
    for decayed in (True, False):
        chosen = {name: value for name, value in group.parameters.items() if (value.dim() > 1) == decayed}
        if chosen:
            decay = training.weight_decay if decayed else 0.0
            yield {
                "params": list(chosen.values()),
                "names": list(chosen),
                "name": group.name,
                "rate": rate,
                "lr": rate,
                "weight_decay": decay,
            }


def named(optimizer: Moving) -> dict[str, nn.Parameter]:
    """Every parameter that the optimizer moves, by name."""
    return {name: value for group in optimizer.param_groups for name, value in zip(group["names"], group["params"], strict=True)}


def set_rates(optimizer: Moving, factor: float) -> None:
    """Each group's own rate times the schedule's factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor


def state(optimizer: Moving) -> dict[str, Tensor]:
    """The optimizer's memory as named tensors; the rates are not in it, they follow from the settings and the step."""
    return {
        f"{name}/{field}": value
        for name, parameter in named(optimizer).items()
        for field, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)  # SGD without momentum keeps a None
    }


def load_state(optimizer: Moving, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `state` gave, to the bit."""
    parameters = named(optimizer)
    unknown = sorted({key.rpartition("/")[0] for key in tensors} - set(parameters))
    if unknown:
        raise ValueError(f"the checkpoint's optimizer remembers parameters that this run does not train: {', '.join(unknown)}")
    for key, value in tensors.items():
        name, _, field = key.rpartition("/")
        parameter = parameters[name]
        optimizer.state[parameter][field] = value.to(parameter.device, copy=True)
        if isinstance(optimizer, Paged):
            optimizer.put_away([parameter])


def cut(optimizer: Moving, name: str, dim: int, kept: Tensor) -> None:
    """A parameter has lost entries of a dimension: its memory loses the same ones. kept: (entries before,) bool."""
    parameter = named(optimizer)[name]
    memory = optimizer.state.get(parameter, {})
    if isinstance(optimizer, Paged):
        optimizer.forget(parameter)
    lost = {"rows": 1, "columns": 0}  # Adafactor's means are over the other dimension of a matrix
    for field, value in memory.items():
        if isinstance(value, Tensor) and value.dim() and lost.get(field) != dim:
            memory[field] = left(value, 0 if field in lost else dim, kept)
    if isinstance(optimizer, Paged):
        optimizer.put_away([parameter])


def left(value: Tensor, dim: int, kept: Tensor) -> Tensor:
    return value.index_select(dim, kept.nonzero()[:, 0].to(value.device))


def clip(parameters: Sequence[Tensor], limit: float) -> Tensor:
    """Scales the gradients to a global norm of at most `limit` (0: only measures) and returns the norm before."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        raise ValueError("no trainable parameter has a gradient: the objective does not reach what the tuning method trains")
    norm = nn.utils.get_total_norm(grads)
    if limit:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor.to(grad.device))
    return norm
