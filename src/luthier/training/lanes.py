"""Two halves of a micro-batch at once on a CPU, on half of its threads each.

A step is a thousand products with as many small operators between them, and all threads meet at the end of each: on two cores that
costs a fifth of a step (LOG.md). Halves that go their own way meet once. Their gradients are added in a fixed order, so a run is
repeated to the bit.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn

from luthier.objectives._batch import Batch, Example, collate

LANES = 2
SMALL = 0.1  # the trained share of the parameters above which gradients of their own for each lane are too much memory
Rest = TypeVar("Rest")
LossOf = Callable[[Batch], tuple[Tensor, Rest]]


def backward(loss_of: LossOf[Rest], batch: Batch, net: nn.Module, trained: Sequence[Tensor], together: bool = False) -> list[Rest]:
    """Adds the gradients of the batch's loss to those of `trained`. loss_of gives the loss, and what to return.

    together: the loss is no sum over examples, so the batch stays whole.
    """
    if together or not _fitting(batch, net, trained):
        loss, rest = loss_of(batch)
        loss.backward()
        return [rest]
    done = _at_once(lambda half: _gradients(loss_of, half, trained), _halves(batch))
    for gradients, _ in done:
        for parameter, gradient in zip(trained, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)  # of the parameter's own strides, as optimizers expect
            parameter.grad.add_(gradient)
    return [rest for _, rest in done]


def _fitting(batch: Batch, net: nn.Module, trained: Sequence[Tensor]) -> bool:
    """On a CPU with threads and examples to share out, a small trained part, and no random numbers, which the lanes would race for."""
    if batch.ids.device.type != "cpu" or torch.get_num_threads() < LANES or batch.rows < LANES:
        return False
    if sum(p.numel() for p in trained) > SMALL * sum(p.numel() for p in net.parameters()):
        return False
    return not any(draws(module) for module in net.modules())


def draws(module: nn.Module) -> bool:
    """Whether it has a rate of dropout: torch's own module, or a number called dropout, attention_dropout ... as model files keep it."""
    named = (value for name, value in vars(module).items() if "drop" in name)
    return any(isinstance(rate, float) and rate > 0 for rate in ([module.p] if isinstance(module, nn.Dropout) else named))


def _halves(batch: Batch) -> list[Batch]:
    """The examples shared out so that tokens are about equal."""
    lanes: list[list[Example]] = [[] for _ in range(LANES)]
    tokens = [0] * LANES
    for example in sorted(batch.examples, key=lambda example: -len(example.ids)):
        lane = tokens.index(min(tokens))
        lanes[lane].append(example)
        tokens[lane] += len(example.ids)
    return [collate(examples) for examples in lanes]


def _gradients(loss_of: LossOf[Rest], batch: Batch, trained: Sequence[Tensor]) -> tuple[Sequence[Tensor | None], Rest]:
    loss, rest = loss_of(batch)
    return torch.autograd.grad(loss, trained, allow_unused=True), rest


def _at_once(function: Callable[[Batch], Rest], batches: Sequence[Batch]) -> list[Rest]:
    workers = _workers(torch.get_num_threads())
    futures = [workers.submit(copy_context().run, function, batch) for batch in batches]
    return [future.result() for future in futures]


@cache
def _workers(threads: int) -> ThreadPoolExecutor:
    def begin() -> None:
        torch.ones(1 << 16).add_(1.0)  # the first parallel operator of a thread takes over the general number
        torch.set_num_threads(threads // LANES)

    workers = ThreadPoolExecutor(LANES, "lane", begin)
    for future in [workers.submit(torch.get_num_threads) for _ in range(LANES)]:
        future.result()
    torch.set_num_threads(threads)  # it holds for this thread and for new ones: the workers have theirs
    return workers
