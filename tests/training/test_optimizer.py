"""Optimizers against torch's and transformers' own, and their state by name."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor as TheirAdafactor

from luthier.training import optimizer as ours
from luthier.training.settings import Training


@dataclass
class Group:
    name: str
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    rate: float | None = None
    factor: float = 1.0


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    source = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (5, 7), "bias": (7,), "stack": (2, 3, 4)}
    return {name: nn.Parameter(torch.randn(shape, generator=source, dtype=torch.float64)) for name, shape in shapes.items()}


def push(values: list[nn.Parameter], step: int) -> None:
    source = torch.Generator().manual_seed(100 + step)
    for value in values:
        value.grad = torch.randn(value.shape, generator=source, dtype=value.dtype)


def settings(**options) -> Training:
    return Training(steps=9, rows=1, rate=0.02, **options)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adafactor_moves_as_transformers_adafactor(relative: bool, decay: float) -> None:
    mine, other = parameters(), list(parameters().values())
    optimizer = ours.build(settings(optimizer="adafactor", relative=relative, weight_decay=decay), [Group("all", mine)])
    decayed = [value for value in other if value.dim() > 1]
    plain = [value for value in other if value.dim() < 2]
    theirs = TheirAdafactor(
        [{"params": decayed, "weight_decay": decay}, {"params": plain}], lr=0.02, relative_step=False, scale_parameter=relative
    )
    for step in range(6):
        push(list(mine.values()), step)
        push(other, step)
        optimizer.step()
        theirs.step()
    for value, oracle in zip(mine.values(), other, strict=True):
        torch.testing.assert_close(value, oracle, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_group_has_its_own_rate_and_biases_do_not_decay(kind: str) -> None:
    mine, other = parameters(), parameters()
    groups = [Group("slow", {"matrix": mine["matrix"], "bias": mine["bias"]}), Group("fast", {"stack": mine["stack"]}, rate=0.3)]
    optimizer = ours.build(settings(optimizer=kind, weight_decay=0.1, momentum=0.9), groups)
    table = [
        {"params": [other["matrix"]], "lr": 0.01, "weight_decay": 0.1},
        {"params": [other["bias"]], "lr": 0.01, "weight_decay": 0.0},
        {"params": [other["stack"]], "lr": 0.15, "weight_decay": 0.1},
    ]
    theirs = torch.optim.AdamW(table, foreach=False) if kind == "adamw" else torch.optim.SGD(table, momentum=0.9)
    ours.set_rates(optimizer, 0.5)
    for step in range(4):
        push(list(mine.values()), step)
        push(list(other.values()), step)
        optimizer.step()
        theirs.step()
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "sgd"])
def test_the_state_goes_by_name_and_comes_back_to_the_bit(kind: str) -> None:
    training = settings(optimizer=kind, momentum=0.9)
    straight = parameters()
    first = ours.build(training, [Group("all", straight)])
    for step in range(3):
        push(list(straight.values()), step)
        first.step()
    turned = {name: nn.Parameter(straight[name].detach().clone()) for name in reversed(straight)}
    second = ours.build(training, [Group("all", turned)])
    ours.load_state(second, {name: value.clone() for name, value in ours.state(first).items()})
    for step in range(3, 6):
        push(list(straight.values()), step)
        push([turned[name] for name in straight], step)
        first.step()
        second.step()
    assert all(torch.equal(straight[name], turned[name]) for name in straight)
    assert any(key.startswith("matrix/") for key in ours.state(first))


def test_a_foreign_state_is_refused_by_name() -> None:
    optimizer = ours.build(settings(), [Group("all", parameters())])
    with pytest.raises(ValueError, match="does not train: other"):
        ours.load_state(optimizer, {"other/exp_avg": torch.zeros(1)})


def test_clip_gives_the_norm_before_and_equals_torch() -> None:
    mine, other = list(parameters().values()), list(parameters().values())
    push(mine, 0)
    push(other, 0)
    assert float(ours.clip(mine, 0.7)) == pytest.approx(float(nn.utils.clip_grad_norm_(other, 0.7)))
    for value, oracle in zip(mine, other, strict=True):
        torch.testing.assert_close(value.grad, oracle.grad, rtol=0, atol=1e-15)
    push(mine, 1)
    before = mine[0].grad.clone()  # type: ignore[union-attr]
    ours.clip(mine, 0.0)
    assert torch.equal(mine[0].grad, before)  # type: ignore[arg-type]


def test_nothing_to_train_is_said() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        ours.build(settings(), [Group("all")])
