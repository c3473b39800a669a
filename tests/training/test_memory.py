"""What a process is said to hold."""

import subprocess
import sys

import pytest
import torch

from luthier.training import memory

SAY = (
    "import resource; from luthier.training import memory; print(memory.peak(), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


@pytest.mark.skipif(not memory.STATUS.exists(), reason="this system does not tell the memory of a process")
def test_the_peak_is_the_processes_own_and_not_that_of_the_one_that_started_it() -> None:
    large = torch.ones(2**31, dtype=torch.uint8)
    told = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True)
    own, inherited = map(int, told.stdout.split())
    assert own < large.nbytes <= inherited


@pytest.mark.skipif(not memory.known() or torch.cuda.is_available(), reason="this system does not tell the memory of a process")
def test_the_peak_rises_with_what_is_held_and_begins_anew() -> None:
    memory.begin()
    before = memory.peak()
    large = torch.ones(2**28, dtype=torch.uint8)
    assert memory.held() <= memory.peak()
    assert memory.peak() >= before + large.nbytes // 2
    del large
    memory.begin()
    assert memory.peak() < before + 2**27
