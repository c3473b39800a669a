"""Checkpoints are whole or absent: killed processes, full disks, flipped bits."""

import errno
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from luthier.config import RunFailed
from luthier.training import checkpoint
from luthier.training import random as generators
from luthier.training.checkpoint import Saved
from luthier.training.settings import Training
from toy import Toy, go_on


def example(step: int = 3) -> Saved:
    table = torch.arange(6.0).reshape(2, 3)
    tensors = {
        "trainable": {"a": table, "turned": table.T, "same": table, "part": table[1]},
        "optimizer": {},
        "low": {"b": table.bfloat16()},
    }
    return Saved(step, tensors, {"left": [1, 2.5, None, "x", {"rollout": torch.tensor([7])}], "rate": 0.1 + 0.2})


def test_what_is_written_comes_back_to_the_bit(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, example())
    found = checkpoint.read(path)
    assert found.step == 3
    for group, tensors in example().tensors.items():
        for name, value in tensors.items():
            assert torch.equal(found.tensors[group][name], value)
            assert found.tensors[group][name].dtype == value.dtype
    assert found.state["rate"] == 0.1 + 0.2
    assert torch.equal(found.state["left"][4].pop("rollout"), torch.tensor([7]))
    assert found.state["left"] == [1, 2.5, None, "x", {}]
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def test_random_generators_go_on_where_they_were(tmp_path: Path) -> None:
    import numpy

    generators.seed_all(5)
    random.gauss(0, 1)  # leaves a second value in Python's generator
    numpy.random.normal()  # and in numpy's
    path = checkpoint.write(tmp_path, Saved(0, {}, {"random": generators.state()}))

    def draw() -> list[float]:
        return [
            random.gauss(0, 1),
            random.random(),
            numpy.random.normal(),
            numpy.random.rand(),
            float(torch.rand(1)),
            float(torch.randn(1)),
        ]

    expected = draw()
    generators.seed_all(6)
    generators.restore(checkpoint.read(path).state["random"])
    assert draw() == expected


def test_half_a_checkpoint_is_none_and_is_cleared_away(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, example(3))
    half = tmp_path / ".step-4.partial"
    half.mkdir()
    (half / "trainable.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) == tmp_path / "step-3"
    checkpoint.write(tmp_path, example(5))
    assert checkpoint.steps(tmp_path) == [3, 5]
    assert not half.exists()


@pytest.mark.parametrize("file", ["trainable.safetensors", "inner.safetensors"])
def test_a_flipped_bit_is_found_and_the_file_named(file: str, tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, example())
    content = bytearray((path / file).read_bytes())
    content[-2] ^= 4
    (path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"step-3/{file}: damaged since it was written; resume from another checkpoint"):
        checkpoint.read(path)


def test_a_missing_or_torn_file_is_named(tmp_path: Path) -> None:
    path = checkpoint.write(tmp_path, example())
    (path / "low.safetensors").unlink()
    with pytest.raises(ValueError, match=r"low\.safetensors: damaged"):
        checkpoint.read(path)
    (path / "state.json").write_text('{"step": 3, "fil')
    with pytest.raises(ValueError, match=r"state\.json: damaged"):
        checkpoint.read(path)
    (path / "state.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint here: state\.json is missing"):
        checkpoint.read(path)


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(Training(steps=9, rows=4, save_every=3), tmp_path)
    write = checkpoint.write_tensors

    def full(path: Path, tensors: dict) -> None:
        if ".step-6" in str(path) and path.stem == "optimizer":
            path.write_bytes(b"some of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(RunFailed, match=r"cannot write the checkpoint .*step-6: No space left on device; .* is whole, .*step-3; make room"):
        toy.run()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-3"]
    monkeypatch.undo()
    again = Toy(Training(steps=9, rows=4, save_every=3), tmp_path)
    again.run(tmp_path / "checkpoints" / "step-3")
    straight = Toy(Training(steps=9, rows=4), tmp_path / "straight")
    straight.run()
    assert all(torch.equal(value, again.weights()[name]) for name, value in straight.weights().items())


def test_a_file_that_the_system_refuses_is_the_same_sentence(tmp_path: Path) -> None:
    """The operating system itself stops the writing (a limit on file sizes), in a process of its own."""
    script = """
import resource, signal, sys, torch
from pathlib import Path
from luthier.config import RunFailed
from luthier.training.checkpoint import Saved, write
write(Path(sys.argv[1]), Saved(1, {"trainable": {"a": torch.zeros(10)}}, {}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write(Path(sys.argv[1]), Saved(2, {"trainable": {"a": torch.zeros(10000)}}, {}))
except RunFailed as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "cannot write the checkpoint" in done.stdout
    assert "step-1; make room" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"steps": 50, "rows": 4, "save_every": 1, "evaluate_every": 7, "ema": 0.9, "rate": 0.01, "warmup": 5, "schedule": "cosine"}
    straight = Toy(Training(**{**options, "save_every": 0}), tmp_path / "straight")
    straight.run()
    begun = time.monotonic()
    Toy(Training(**{**options, "steps": 5}), tmp_path / "pace").run()
    pace = (time.monotonic() - begun) / 5  # mostly the disk's
    home, source = tmp_path / "killed", random.Random(0)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # where the server finds toy
    processes = multiprocessing.get_context("forkserver")  # each attempt is a new process; torch is imported once
    processes.set_forkserver_preload(["toy"])
    for _ in range(10):
        before = checkpoint.steps(home / "checkpoints")
        process = processes.Process(target=go_on, args=(home, options))
        process.start()
        while process.is_alive() and checkpoint.steps(home / "checkpoints") == before:
            time.sleep(0.002)  # until it has trained a step
        time.sleep(source.uniform(0, 1.5 * pace))
        assert process.is_alive(), "the run ended before it could be killed; give it more steps"
        process.kill()
        process.join()
        last = checkpoint.newest(home / "checkpoints")
        assert last is not None
        checkpoint.read(last)
    process = processes.Process(target=go_on, args=(home, options))
    process.start()
    process.join()
    assert process.exitcode == 0
    expected = checkpoint.read(tmp_path / "straight" / "checkpoints" / "step-50")
    found = checkpoint.read(home / "checkpoints" / "step-50")
    for group, tensors in expected.tensors.items():
        assert all(torch.equal(value, found.tensors[group][name]) for name, value in tensors.items()), group
    steps = [json.loads(line)["step"] for line in (home / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(51))
