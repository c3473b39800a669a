"""The equations by hand, and samplers on a normal distribution, whose noise is known exactly."""

import pytest
import torch

from luthier.core.diffusion import guided, left, noise_loss, noised, sample

MEAN, SPREAD = 1.5, 0.4


def exact(left_N):
    """The expected noise in x at each step, if clean ones are normal: sqrt(1 - a) (x - sqrt(a) m) / (a s^2 + 1 - a)."""

    def tell(x, step_B):
        a = left_N[step_B][:, None]
        return (1 - a).sqrt() * (x - a.sqrt() * MEAN) / (a * SPREAD**2 + 1 - a)

    return tell


def start(count: int = 8000):
    return torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_less_and_less_is_left_until_nearly_nothing(schedule):
    a = left(1000, schedule)
    assert a[0] > 0.999 and a[-1] < 1e-4 and bool((a.diff() < 0).all())


def test_the_linear_schedule_is_the_papers():
    """beta from 0.0001 to 0.02 in 1000 steps."""
    want, beta = 1.0, [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]
    for t in range(300):
        want *= 1 - beta[t]
    assert left(1000)[299].item() == pytest.approx(want)


def test_noise_is_added_as_equation_4_says():
    a = torch.tensor([0.81, 0.36])
    got = noised(torch.tensor([[1.0], [2.0]]), torch.tensor([[10.0], [20.0]]), torch.tensor([0, 1]), a)
    torch.testing.assert_close(got, torch.tensor([[0.9 + 10 * 0.19**0.5], [1.2 + 16.0]]))


@pytest.mark.parametrize(("steps", "eta", "schedule"), [(1000, 1.0, "linear"), (100, 0.0, "linear"), (100, 0.5, "cosine")])
def test_a_normal_distribution_comes_back(steps, eta, schedule):
    a = left(1000, schedule)
    drawn = sample(exact(a), start(), a, steps, eta, generator=torch.Generator().manual_seed(1))
    assert drawn.mean().item() == pytest.approx(MEAN, abs=0.03) and drawn.std().item() == pytest.approx(SPREAD, abs=0.03)


def test_ddim_steps_by_hand_and_repeats_itself():
    a = torch.tensor([0.9, 0.5], dtype=torch.float64)
    tell = lambda x, step_B: torch.full_like(x, 0.3)  # noqa: E731
    x = torch.tensor([[1.0]], dtype=torch.float64)
    first = (1.0 - 0.5**0.5 * 0.3) / 0.5**0.5
    middle = 0.9**0.5 * first + 0.1**0.5 * 0.3
    want = (middle - 0.1**0.5 * 0.3) / 0.9**0.5
    assert sample(tell, x, a, 2).item() == pytest.approx(want)
    assert torch.equal(sample(tell, x, a, 2), sample(tell, x, a, 2))
    assert sample(tell, x, a, 2, clip=0.5).item() == pytest.approx(0.5)


def test_guidance_is_equation_6():
    net = lambda x, step_B, label_B: x * label_B[:, None]  # noqa: E731
    x, labels = torch.ones(2, 1), torch.tensor([2, 3])
    tell = guided(net, labels, 9, 0.5)
    torch.testing.assert_close(tell(x, torch.zeros(2)), torch.tensor([[1.5 * 2 - 0.5 * 9], [1.5 * 3 - 0.5 * 9]]))
    torch.testing.assert_close(guided(net, labels, 9, 0.0)(x, torch.zeros(2)), torch.tensor([[2.0], [3.0]]))


def test_the_exact_noise_has_the_least_loss():
    a, clean = left(1000), MEAN + SPREAD * start()
    losses = [
        noise_loss(lambda x, t, s=shift: exact(a)(x, t) + s, clean, a, torch.Generator().manual_seed(2)).item()
        for shift in (-0.1, 0.0, 0.1)
    ]
    assert losses[1] == min(losses) and losses[0] - losses[1] == pytest.approx(0.01, abs=0.002)


def test_more_steps_than_were_trained_are_refused():
    with pytest.raises(ValueError, match="steps=11 must be between 1 and the 10"):
        sample(lambda x, t: x, torch.zeros(1, 1), left(10), 11)
