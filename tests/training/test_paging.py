"""Paged optimizers against the plain ones: the same weights to the bit."""

import errno
import mmap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import tinyrun
from luthier.config import RunFailed
from luthier.run import Run, run
from luthier.training import optimizer, paging
from luthier.training.paging import Paged
from luthier.training.settings import Training
from luthier.tuning._attached import Group

SHAPES = {"wide": (64, 96), "bias": (96,), "turned": (96, 64), "long": (5000,), "late": (48, 48)}


def parameters() -> dict[str, nn.Parameter]:
    source = torch.Generator().manual_seed(0)
    values = {name: torch.randn(shape, generator=source) for name, shape in SHAPES.items()}
    values["turned"] = values["turned"].T  # not contiguous
    return {name: nn.Parameter(value) for name, value in values.items()}


def built(values: dict[str, nn.Parameter], folder: Path, **fields) -> optimizer.Moving:
    training = Training(steps=9, rows=1, rate=0.02, weight_decay=0.1, **fields)
    first = {name: values[name] for name in ("wide", "bias")}
    rest = {name: value for name, value in values.items() if name not in first}
    return optimizer.build(training, [Group("first", first), Group("rest", rest, 0.1)], folder)


def walk(moving: optimizer.Moving, values: dict[str, nn.Parameter], steps: range) -> None:
    for step in steps:
        source = torch.Generator().manual_seed(step)
        for name, value in values.items():
            grad = torch.randn(value.shape, generator=source)
            value.grad = None if name == "late" and step < 3 else grad  # a parameter that the first batches do not reach
        moving.step()


def outside(moving: optimizer.Moving) -> set[str]:
    assert isinstance(moving, Paged)
    names = {value: name for name, value in optimizer.named(moving).items()}
    return {f"{names[parameter]}/{field}" for parameter, field in moving.homes}  # type: ignore[index]


KINDS = [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "sgd"}, {"optimizer": "adafactor"}]


@pytest.mark.parametrize("page", [1, 40_000, paging.PAGE])
@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_the_weights_are_the_plain_optimizer_s_to_the_bit(fields: dict, page: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(paging, "PAGE", page)
    plain, paged = parameters(), parameters()
    one, other = built(plain, tmp_path, **fields), built(paged, tmp_path, paged=True, **fields)
    walk(one, plain, range(8))
    walk(other, paged, range(8))
    torch.testing.assert_close(paged, plain, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state(other), optimizer.state(one), rtol=0, atol=0)
    if fields == KINDS[0]:
        assert outside(other) == {f"{name}/{field}" for name in SHAPES if name != "bias" for field in ("exp_avg", "exp_avg_sq")}


def test_pinned_memory_comes_onto_the_device_and_goes_back(tmp_path: Path, monkeypatch):
    """As on a GPU run, with ordinary memory in place of pinned memory."""
    monkeypatch.setattr(Paged, "_home", lambda _, value: paging.Home(torch.empty_like(value), None))
    plain, paged = parameters(), parameters()
    one, other = built(plain, tmp_path), built(paged, tmp_path, paged=True)
    walk(one, plain, range(6))
    walk(other, paged, range(6))
    torch.testing.assert_close(paged, plain, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state(other), optimizer.state(one), rtol=0, atol=0)


def test_the_budget_is_what_stays_in_memory(tmp_path: Path):
    values = {name: nn.Parameter(torch.ones(256, 512)) for name in ("a", "b", "c")}  # half a MiB each, its state one
    moving = optimizer.build(Training(steps=1, rows=1, paged=True, resident_mb=2), [Group("all", values)], tmp_path)
    walk(moving, values, range(2))
    assert outside(moving) == {"c/exp_avg", "c/exp_avg_sq"} and isinstance(moving, Paged)
    assert moving.kept_bytes == 2 * 2**20 and moving.file.seek(0, 2) == 2**20
    assert list(tmp_path.iterdir()) == []  # the file has no name: nothing is left behind


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not say what is resident")
def test_memory_holds_one_page_of_state(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(paging, "PAGE", 2**22)
    values = {f"p{i}": nn.Parameter(torch.ones(2**20)) for i in range(16)}  # 4 MiB each, 128 MiB of state
    for value in values.values():
        value.grad = torch.ones_like(value)

    torch.optim.AdamW([nn.Parameter(torch.ones(1))], fused=True).step()  # what torch loads at its first step

    def growth(paged: bool) -> int:
        before = resident_bytes()
        moving = optimizer.build(Training(steps=1, rows=1, paged=paged), [Group("all", values)], tmp_path)
        for _ in range(2):
            moving.step()
        return resident_bytes() - before

    assert growth(True) < 32 * 2**20 < 112 * 2**20 < growth(False)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("fields", KINDS, ids=str)
def test_a_checkpoint_goes_from_either_to_either(fields: dict, tmp_path: Path):
    whole = parameters()
    walk(built(whole, tmp_path, **fields), whole, range(6))
    for before, after in ((True, True), (True, False), (False, True)):
        values = parameters()
        first = built(values, tmp_path, paged=before, **fields)
        walk(first, values, range(4))
        saved: dict[str, Tensor] = {name: value.clone() for name, value in optimizer.state(first).items()}
        second = built(values, tmp_path, paged=after, **fields)
        optimizer.load_state(second, saved)
        assert not after or fields.get("momentum") == 0.9 or fields["optimizer"] != "adamw" or outside(second)
        walk(second, values, range(4, 6))
        torch.testing.assert_close(values, whole, rtol=0, atol=0)


def test_a_failing_step_leaves_the_groups(tmp_path: Path, monkeypatch):
    values = parameters()
    moving = built(values, tmp_path, paged=True)
    assert isinstance(moving, Paged)

    def broken() -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(moving.inner, "step", broken)
        with pytest.raises(RuntimeError, match="broken"):
            moving.step()
    assert len(moving.param_groups) == 4
    walk(moving, values, range(2))


def test_a_full_disk_is_an_error_in_words(tmp_path: Path, monkeypatch):
    class Full:
        def close(self):
            pass

        def seek(self, *_):
            return 0

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(paging.tempfile, "TemporaryFile", lambda **_: Full())
    values = parameters()
    with pytest.raises(RunFailed, match="does not fit on the disk.*No space left"):
        walk(built(values, tmp_path, paged=True), values, range(1))


def test_a_budget_without_paging_is_refused():
    with pytest.raises(ValueError, match="goes with paged"):
        Training(steps=1, rows=1, resident_mb=5)


def test_a_paged_run_and_its_resume_equal_the_plain_run(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(paging, "SMALL", 64)

    def settings(name: str, paged: bool) -> Run:
        training = {"steps": 6, "save_every": 3, "keep": 5, "paged": paged}
        return Run.from_yaml(tinyrun.write_run(tmp_path, training=training, output=str(tmp_path / name)))

    def weights(name: str) -> dict[str, Tensor]:
        return load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")

    run(settings("plain", False))
    run(settings("paged", True))
    torch.testing.assert_close(weights("paged"), weights("plain"), rtol=0, atol=0)
    run(settings("paged", True), resume=tmp_path / "paged" / "checkpoints" / "step-3")
    torch.testing.assert_close(weights("paged"), weights("plain"), rtol=0, atol=0)
    for step in (3, 6):
        one, other = (load_file(tmp_path / name / "checkpoints" / f"step-{step}" / "optimizer.safetensors") for name in ("plain", "paged"))
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("resident_mb", [0, 1])
def test_state_of_entries_that_went_goes_with_them(tmp_path: Path, resident_mb: int):
    """Half of the rows of one parameter and of the columns of another, in the middle of a run: paged as plain."""
    plain, paged = parameters(), parameters()
    movings = built(plain, tmp_path), built(paged, tmp_path, paged=True, resident_mb=resident_mb)
    kept = {"wide": (0, torch.arange(64) % 2 == 0), "late": (1, torch.arange(48) % 3 == 0)}
    for values, moving in zip((plain, paged), movings, strict=True):
        walk(moving, values, range(1, 4))
        for name, (dim, mask) in kept.items():
            values[name].grad = None
            values[name].data = optimizer.left(values[name].detach(), dim, mask)
            optimizer.cut(moving, name, dim, mask)
        walk(moving, values, range(4, 7))
    first, second = (optimizer.state(moving) for moving in movings)
    assert first.keys() == second.keys() and first["wide/exp_avg"].shape == (32, 96) and first["late/exp_avg"].shape == (48, 16)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(plain[name], paged[name]) for name in plain)
