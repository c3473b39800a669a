"""Two halves of a batch at once give the gradients of one backward, the same ones every time."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import luthier
from luthier.data.stream import Sample
from luthier.objectives._batch import Batch, collate, encode
from luthier.objectives.chat import Chat
from luthier.sources.model import Model
from luthier.training import lanes
from luthier.training.loop import accumulate
from luthier.training.precision import settle
from tiny import tiny_chat
from tinyrun import chats


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def tuned(dropout: float = 0.0, method: str = "lora") -> Model:
    model = tiny_chat(width=64, hidden=256)
    torch.manual_seed(0)
    luthier.tune(model, method, **({"rank": 2, "roles": ("q", "down"), "dropout": dropout} if method == "lora" else {}))
    settle(model.net, "fp32")
    with torch.no_grad():
        for parameter in model.net.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch(model: Model, rows: int) -> Batch:
    samples = [Sample(row, 0, i, 0) for i, row in enumerate(chats(rows))]
    return collate([example for examples in encode(Chat(), samples, model, 512) for example in examples])


def gradients(model: Model, made: Batch, precision: str = "fp32") -> list[Tensor]:
    assert model.attached is not None
    trained = list(model.attached.parameters.values())
    for parameter in trained:
        parameter.grad = None
    values = accumulate(model.net, Chat(), [made], model.attached, precision)
    assert all(parameter.grad.stride() == parameter.stride() for parameter in trained)  # type: ignore[union-attr]
    return [torch.tensor(values["lm"]), *(parameter.grad for parameter in trained)]  # type: ignore[misc]


def in_halves(model: Model, made: Batch) -> bool:
    return lanes._fitting(made, model.net, [p for p in model.net.parameters() if p.requires_grad])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_halves_give_the_gradients_of_the_whole(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tuned()
    if precision == "fp32":
        model.net.double()
    else:
        settle(model.net, precision)
    made = batch(model, 5)
    assert in_halves(model, made)
    halves, again = gradients(model, made, precision), gradients(model, made, precision)
    monkeypatch.setattr(lanes, "_fitting", lambda *_: False)
    for half, repeated, whole in zip(halves, again, gradients(model, made, precision), strict=True):
        assert torch.equal(half, repeated)
        floor = 1e-12 if precision == "fp32" else 3e-2
        assert (half - whole).norm() < floor * whole.norm()


def test_the_threads_of_the_caller_stay_as_they_are() -> None:
    model = tuned()
    gradients(model, batch(model, 4))
    assert torch.get_num_threads() == 2
    workers = lanes._workers(2)
    assert [workers.submit(torch.get_num_threads).result() for _ in range(4)] == [1] * 4


def test_halves_share_the_tokens_and_keep_every_example() -> None:
    model = tuned()
    made = batch(model, 7)
    halves = lanes._halves(made)
    assert sorted(example.row for half in halves for example in half.examples) == list(range(7))
    longest = max(len(example.ids) for example in made.examples)
    assert abs(halves[0].tokens - halves[1].tokens) <= longest


def test_random_numbers_a_large_trained_part_and_a_single_example_go_as_one() -> None:
    model = tuned()
    assert not in_halves(model, batch(model, 1))
    noisy, whole, theirs = tuned(dropout=0.1), tuned(method="full"), tuned()
    theirs.net.blocks[0].attention_dropout = 0.1  # type: ignore[union-attr, assignment]  # as transformers' modules keep it
    assert not in_halves(theirs, batch(theirs, 4))
    assert not in_halves(noisy, batch(noisy, 4))
    assert not in_halves(whole, batch(whole, 4))
    torch.set_num_threads(1)
    assert not in_halves(model, batch(model, 4))


def test_a_mistake_in_a_half_reaches_the_caller() -> None:
    model = tuned()

    def broken(half: Batch) -> tuple[Tensor, None]:
        raise ValueError(f"{half.rows} rows")

    with pytest.raises(ValueError, match="rows"):
        lanes.backward(broken, batch(model, 4), model.net, [])
