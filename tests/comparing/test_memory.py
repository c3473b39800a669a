"""The memory of one run among several: what its steps took on top, and what it keeps."""

import pytest
import torch

from luthier.comparing import memory
from luthier.comparing.memory import Gauge

pytestmark = pytest.mark.skipif(not memory.known(), reason="this system does not tell the peaks of a process")
MIB = 2**20


def test_the_most_that_a_step_took_is_seen_also_when_it_is_given_back() -> None:
    gauge = Gauge()
    for mebibytes in (200, 20, 60, 10):  # the first makes the run and is not a step
        with gauge.watching():
            torch.ones(mebibytes * MIB // 4).sum()
    assert 55 * MIB < gauge.most < 90 * MIB


def test_memory_alone_is_the_base_what_is_kept_and_the_most_of_a_step() -> None:
    trained = {"a": torch.zeros(10), "b": torch.zeros(2, 5, dtype=torch.float64)}
    assert Gauge(3, 7).alone(1000, trained, "adamw") == 1000 + 7 + 3 * (40 + 80)
    assert Gauge(3, 7).alone(1000, trained, "sgd") == 1000 + 7 + 2 * (40 + 80)
    assert Gauge().alone(1000, trained, "adamw") == 0  # not known
