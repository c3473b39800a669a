"""Our factors against transformers' schedules, step by step."""

import pytest
import torch
from transformers import optimization as theirs

from luthier.training.schedule import factor
from luthier.training.settings import Training

STEPS = 40


def expected(build, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = build(optimizer, **options)
    factors = []
    for _ in range(STEPS):
        factors.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return factors


CASES = {
    "constant": ({}, theirs.get_constant_schedule, {}),
    "constant_warmup": ({"schedule": "constant", "warmup": 7}, theirs.get_constant_schedule_with_warmup, {"num_warmup_steps": 7}),
    "linear": ({"schedule": "linear"}, theirs.get_linear_schedule_with_warmup, {"num_warmup_steps": 0, "num_training_steps": STEPS}),
    "linear_share": (
        {"schedule": "linear", "warmup": 0.1},
        theirs.get_linear_schedule_with_warmup,
        {"num_warmup_steps": 4, "num_training_steps": STEPS},
    ),
    "cosine": (
        {"schedule": "cosine", "warmup": 3},
        theirs.get_cosine_schedule_with_warmup,
        {"num_warmup_steps": 3, "num_training_steps": STEPS},
    ),
    "cosine_floor": (
        {"schedule": "cosine", "warmup": 3, "floor": 0.1},
        theirs.get_cosine_with_min_lr_schedule_with_warmup,
        {"num_warmup_steps": 3, "num_training_steps": STEPS, "min_lr_rate": 0.1},
    ),
    "wsd": (
        {"schedule": "wsd", "warmup": 5, "decay": 0.25},
        theirs.get_wsd_schedule,
        {"num_warmup_steps": 5, "num_decay_steps": 10, "num_training_steps": STEPS},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_factors_equal_transformers(case: str) -> None:
    settings, build, options = CASES[case]
    training = Training(steps=STEPS, rows=1, **{"schedule": "constant", **settings})
    ours = [factor(training, step, STEPS) for step in range(STEPS)]
    assert ours == pytest.approx(expected(build, **options), abs=1e-12)


def test_noam_is_the_papers_formula_in_units_of_its_highest_rate() -> None:
    training = Training(steps=STEPS, rows=1, schedule="noam", warmup=7)
    width = 512
    peak = width**-0.5 * 7**-0.5
    wanted = [width**-0.5 * min(n**-0.5, n * 7**-1.5) / peak for n in range(1, STEPS + 1)]
    assert [factor(training, step, STEPS) for step in range(STEPS)] == pytest.approx(wanted, abs=1e-12)
    assert max(wanted) == pytest.approx(1.0)
    assert factor(Training(steps=STEPS, rows=1, schedule="noam"), 3, STEPS) == pytest.approx(0.5)


def test_after_the_last_step_the_floor_holds() -> None:
    for schedule, last in (("linear", 0.0), ("cosine", 0.2), ("wsd", 0.2), ("constant", 1.0)):
        training = Training(steps=STEPS, rows=1, schedule=schedule, floor=0.2)  # type: ignore[arg-type]
        assert factor(training, STEPS + 5, STEPS) == pytest.approx(last)


def test_a_decay_shorter_than_a_step_is_none() -> None:
    training = Training(steps=2, rows=1, schedule="wsd", decay=0.2)
    assert [factor(training, step, 2) for step in range(2)] == [1.0, 1.0]


def test_a_warmup_longer_than_the_run_never_divides_by_zero() -> None:
    for schedule in ("constant", "linear", "cosine", "wsd"):
        training = Training(steps=2, rows=1, warmup=5, decay=0.0, schedule=schedule)  # type: ignore[arg-type]
        assert [factor(training, step, 2) for step in range(2)] == [0.0, 0.2]
