"""The loop: exact weights, resume to the bit, what stops it, what it writes."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.config import RunFailed
from luthier.training import checkpoint, log
from luthier.training.loop import accumulate, count_steps
from luthier.training.precision import lowered, settle
from luthier.training.settings import Training
from luthier.training.stop import Interrupted
from toy import Toy, ToyBatches


def settings(**options: Any) -> Training:
    return Training(**{"steps": 12, "rows": 4, "rate": 0.02, "schedule": "cosine", "warmup": 2, "weight_decay": 0.01, **options})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / log.NAME).read_text().splitlines()]


def gradients(toy: Toy, precision: str = "fp32") -> dict[str, torch.Tensor]:
    net: Any = toy.net
    values = accumulate(net, toy.objective, next(toy.batches), toy.attached, precision)  # type: ignore[arg-type]
    return {"values": torch.tensor(list(values.values())), **{name: p.grad for name, p in net.named_parameters() if p.requires_grad}}


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_many_micro_batches_weigh_every_token_as_one_big_batch(micro: int, tmp_path: Path) -> None:
    both = []
    for rows_at_once in (7, micro):
        toy = Toy(settings(), tmp_path, torch.float64, dropout=0.0, noise=0.0, batches=ToyBatches(rows=7, micro=rows_at_once))
        both.append(gradients(toy))
    for name in both[0]:
        torch.testing.assert_close(both[0][name], both[1][name], rtol=0, atol=1e-12)


def test_the_loss_is_the_mean_over_labelled_tokens_of_the_whole_step(tmp_path: Path) -> None:
    toy = Toy(settings(), tmp_path, torch.float64, dropout=0.0, noise=0.0, batches=ToyBatches(rows=10, micro=3))
    net: Any = toy.net
    values = accumulate(net, toy.objective, next(toy.batches), toy.attached)  # type: ignore[arg-type]
    with torch.no_grad():
        assert values["lm"] == pytest.approx(toy.evaluate()["loss"], rel=1e-6)
    assert set(values) == {"lm", "first", "penalty"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ema": 0.9},
        {"precision": "bf16"},
        {"precision": "fp16", "ema": 0.5},
        {"optimizer": "adafactor"},
        {"optimizer": "sgd", "momentum": 0.9},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "plain",
)
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(options: dict, stop: int, tmp_path: Path) -> None:
    training = settings(save_every=1, keep=20, evaluate_every=3, **options)
    straight = Toy(training, tmp_path / "straight")
    straight.run()
    torch.manual_seed(77)  # a new process has other generators
    resumed = Toy(training, tmp_path / "straight")
    resumed.run(tmp_path / "straight" / "checkpoints" / f"step-{stop}")
    assert straight.weights().keys() == resumed.weights().keys()
    for name, value in straight.weights().items():
        assert torch.equal(value, resumed.weights()[name]), name
    assert resumed.batches.position == straight.batches.position


def test_metrics_have_one_line_per_step_also_after_a_resume_and_a_torn_line(tmp_path: Path) -> None:
    training = settings(save_every=4, evaluate_every=3, keep=9)
    Toy(training, tmp_path).run()
    whole = lines(tmp_path)
    with (tmp_path / log.NAME).open("a") as file:
        file.write('{"step": 99, "lo')
    Toy(training, tmp_path).run(tmp_path / "checkpoints" / "step-8")
    again = lines(tmp_path)
    assert [line["step"] for line in again] == list(range(13))
    assert [line.get("loss") for line in again] == [line.get("loss") for line in whole]
    assert [line["step"] for line in again if "held_out" in line] == [0, 3, 6, 9, 12]


def test_a_run_stopped_before_its_first_step_has_its_first_line_once(tmp_path: Path) -> None:
    toy = Toy(settings(), tmp_path)

    def evaluate(final: bool) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return toy.evaluate()

    with pytest.raises(Interrupted):
        toy.run(evaluate=evaluate)
    Toy(settings(), tmp_path).run(tmp_path / "checkpoints" / "step-0")
    assert [line["step"] for line in lines(tmp_path)] == list(range(13))


def test_checkpoints_after_the_one_resumed_from_are_set_aside(tmp_path: Path) -> None:
    training = settings(save_every=4, keep=9)
    Toy(training, tmp_path).run()
    Toy(settings(save_every=5, keep=9), tmp_path).run(tmp_path / "checkpoints" / "step-4")
    assert checkpoint.steps(tmp_path / "checkpoints") == [4, 5, 10, 12]
    assert (tmp_path / "checkpoints" / "aside-step-8").is_dir()


def test_the_newest_checkpoints_and_the_best_stay(tmp_path: Path) -> None:
    toy = Toy(settings(save_every=1, evaluate_every=1, keep=2, rate=0.3, schedule="constant"), tmp_path)
    losses = iter([5.0, 4.0, 3.0, 1.0, 2.0, *[6.0] * 20])
    history = toy.run(evaluate=lambda final: {"loss": next(losses)})
    assert history.best == {"step": 3, "loss": 1.0}
    assert history.before == {"step": 0, "loss": 5.0}
    assert checkpoint.steps(tmp_path / "checkpoints") == [3, 11, 12]


def test_the_best_weights_are_handed_over_on_request(tmp_path: Path) -> None:
    losses = iter([5.0, 3.0, 1.0, *[6.0] * 20])
    toy = Toy(settings(evaluate_every=2, result="best"), tmp_path)
    history = toy.run(evaluate=lambda final: {"loss": next(losses)})
    kept = checkpoint.read(tmp_path / "checkpoints" / "step-4").tensors["trainable"]
    assert history.after == history.best == {"step": 4, "loss": 1.0}
    assert all(torch.equal(value, kept[name]) for name, value in toy.weights().items())


def test_a_run_learns_and_the_average_is_what_it_hands_over(tmp_path: Path) -> None:
    toy = Toy(settings(steps=60, ema=0.8, rate=0.05), tmp_path, dropout=0.0, noise=0.0)
    history = toy.run()
    assert history.before
    assert history.after
    assert history.after["loss"] < history.before["loss"] - 0.5
    with torch.no_grad():
        assert toy.evaluate() == {"loss": history.after["loss"]}
    saved = checkpoint.read(tmp_path / "checkpoints" / "step-60").tensors
    assert torch.equal(toy.net.mix.weight, saved["average"]["mix.weight"])
    assert not torch.equal(toy.net.mix.weight, saved["trainable"]["mix.weight"])


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_step_and_term(tmp_path: Path) -> None:
    toy = Toy(settings(save_every=2), tmp_path)
    toy.objective.poison = 2 * 4  # two micro-batches a step: the fifth step
    with pytest.raises(RunFailed, match=r"step 5: the term 'lm' of the loss is nan; the last good checkpoint is .*step-4"):
        toy.run()
    assert checkpoint.steps(tmp_path / "checkpoints") == [2, 4]
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4]


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    toy = Toy(settings(save_every=3), tmp_path)
    after = toy.attached.after_step

    def spoil(step: int) -> None:
        after(step)
        if step == 6:
            with torch.no_grad():
                toy.net.mix.bias[0] = math.inf

    toy.attached.after_step = spoil  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match=r"step 6: mix.bias is no longer finite.*step-3"):
        toy.run()
    assert checkpoint.steps(tmp_path / "checkpoints") == [3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_finish_and_the_resumed_run_is_the_same(number: int, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    straight = Toy(settings(), tmp_path / "straight")
    straight.run()
    stopped = Toy(settings(), tmp_path / "stopped")
    after = stopped.attached.after_step

    def interrupt(step: int) -> None:
        after(step)
        if step == 7:
            os.kill(os.getpid(), number)

    stopped.attached.after_step = interrupt  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match=r"stopped after step 7 of 12; .*step-7 holds it; go on with --resume auto"):
        stopped.run()
    assert signal.getsignal(signal.SIGINT) is before
    again = Toy(settings(), tmp_path / "stopped")
    again.run(tmp_path / "stopped" / "checkpoints" / "step-7")
    assert all(torch.equal(value, again.weights()[name]) for name, value in straight.weights().items())


def test_fp16_skips_a_step_whose_gradients_overflow_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = Toy(settings(precision="fp16"), tmp_path, noise=0.0)
    penalty = toy.attached.penalty
    toy.attached.penalty = lambda: penalty() * (1e36 if toy.objective.calls == 6 else 1.0)  # type: ignore[method-assign]
    toy.run()
    skipped = [line for line in lines(tmp_path) if "skipped" in line]
    assert 3 in [line["step"] for line in skipped]
    assert [line["skipped"] for line in skipped] == [2.0 ** (15 - i) for i in range(len(skipped))]
    assert "step 3: the gradients overflow in fp16; skipped, the loss scale is now" in capsys.readouterr().err


def test_fp16_unscales_the_gradients_before_they_are_clipped(tmp_path: Path) -> None:
    """Their norm is fp32's, at weights that stay."""
    norms = {}
    for precision in ("fp32", "fp16"):
        training = settings(precision=precision, optimizer="sgd", rate=0.0)
        Toy(training, tmp_path / precision, dropout=0.0, noise=0.0, batches=ToyBatches(rows=1, micro=1)).run()
        norms[precision] = {line["step"]: line["norm"] for line in lines(tmp_path / precision) if line.get("norm")}
    assert len(norms["fp16"]) > 4
    for step, norm in norms["fp16"].items():
        assert norm == pytest.approx(norms["fp32"][step], rel=0.02)


def test_an_evaluation_leaves_no_trace_in_the_run(tmp_path: Path) -> None:
    often = Toy(settings(evaluate_every=1), tmp_path / "often")
    often.run()
    never = Toy(settings(), tmp_path / "never")
    never.run(evaluate=None)
    assert all(torch.equal(value, never.weights()[name]) for name, value in often.weights().items())


def test_overflow_outside_fp16_stops_the_run(tmp_path: Path) -> None:
    toy = Toy(settings(), tmp_path)
    penalty = toy.attached.penalty
    toy.attached.penalty = lambda: (penalty() * 1e-30).sqrt().sqrt() * 1e38  # type: ignore[method-assign]  # finite, its gradient squared is not
    with pytest.raises(RunFailed, match="step 1: the norm of the gradients is inf; there is no checkpoint yet"):
        toy.run()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_keeps_what_trains_in_fp32_and_finds_nearly_the_same_gradients(precision: str, tmp_path: Path) -> None:
    exact = gradients(Toy(settings(), tmp_path, torch.float64, dropout=0.0, noise=0.0))
    toy = Toy(settings(), tmp_path, dropout=0.0, noise=0.0)
    before = toy.weights()
    settle(toy.net, precision)
    assert toy.net.norm.weight.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert all(torch.equal(value, before[name]) for name, value in toy.weights().items())
    with lowered(toy.net, precision):
        assert toy.net.hidden(torch.tensor([[1, 2]]), (2,)).dtype == toy.net.norm.weight.dtype
        assert toy.net.heads["lm"].weight is toy.net.token.weight
    gradients(toy, precision)
    assert toy.net.heads["lm"].weight is toy.net.token.weight
    assert isinstance(toy.net.mix.weight, torch.nn.Parameter)
    for name, value in toy.net.named_parameters():
        if value.requires_grad:
            assert value.grad is not None
            assert value.grad.dtype == torch.float32
            assert float((value.grad - exact[name]).norm() / exact[name].norm()) < (3e-2 if precision == "bf16" else 4e-3)


def test_epochs_become_steps_without_moving_the_data() -> None:
    batches = ToyBatches(rows=4)
    assert count_steps(batches, 2.0) == 5  # type: ignore[arg-type]
    assert count_steps(batches, 1.0) == 3  # type: ignore[arg-type]
    assert batches.position == 0


def test_a_finished_run_resumed_does_nothing_and_fewer_steps_are_refused(tmp_path: Path) -> None:
    first = Toy(settings(), tmp_path)
    history = first.run()
    second = Toy(settings(), tmp_path)
    again = second.run(tmp_path / "checkpoints" / "step-12")
    assert again == history
    assert all(torch.equal(value, second.weights()[name]) for name, value in first.weights().items())
    with pytest.raises(ValueError, match="stands at step 12, beyond the 5 steps"):
        Toy(settings(steps=5), tmp_path).run(tmp_path / "checkpoints" / "step-12")


def test_plain_lines_are_printed_when_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Toy(settings(steps=40), tmp_path).run()
    printed = capsys.readouterr().err.splitlines()
    assert printed[0].startswith("step 0/40  held-out")
    assert any("tokens/s" in line and "GB" in line and "left" in line for line in printed)
    assert len(printed) < 25


def test_tensorboard_gets_the_figures_on_request(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    Toy(settings(steps=2, tensorboard=True), tmp_path).run()
    assert list((tmp_path / "tensorboard").glob("events.*"))
