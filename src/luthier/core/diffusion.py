"""Diffusion of pictures: noise is added step by step, a net learns to tell it, samples are made by taking it away again.

a is the share of the picture left after step t (alpha bar in the papers); steps are counted from 0, -1 is the clean picture.
B pictures of any further shape, N steps
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Noise = Callable[[Tensor, Tensor], Tensor]  # (B, ...) noised pictures and (B,) steps to the noise in them


def left(steps: int, schedule: Literal["linear", "cosine"] = "linear") -> Tensor:
    """a of each step, (N,) float64. linear: Ho et al. 2020, arXiv:2006.11239, section 4; cosine: Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17."""
    if schedule == "cosine":
        f = torch.cos((torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - (1 - f[1:] / f[:-1]).clamp(max=0.999)).cumprod(0)
    return (1 - torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * 1000 / steps).cumprod(0)


def noised(clean: Tensor, noise: Tensor, step_B: Tensor, left_N: Tensor) -> Tensor:
    """sqrt(a) x + sqrt(1 - a) noise. Ho et al. 2020, eq. 4."""
    a = _wide(left_N[step_B.to(left_N.device)], clean)
    return a.sqrt() * clean + (1 - a).sqrt() * noise


def noise_loss(net: Noise, clean: Tensor, left_N: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The mean squared error of the noise told, each picture at a step of its own. Ho et al. 2020, eq. 14."""
    step_B = torch.randint(len(left_N), (len(clean),), generator=generator, device=clean.device)
    noise = torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    return F.mse_loss(net(noised(clean, noise, step_B, left_N), step_B), noise)


@torch.inference_mode()
def sample(
    net: Noise,
    start: Tensor,
    left_N: Tensor,
    steps: int = 50,
    eta: float = 0.0,
    clip: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Pictures out of noise `start` (B, ...) in `steps` evenly spaced steps. Song et al. 2020 (DDIM), arXiv:2010.02502, eq. 12 and 16.

    eta 0 adds no noise on the way; eta 1 with as many steps as there are is DDPM. clip: no clean picture is believed to lie beyond +-clip.
    """
    if not 1 <= steps <= len(left_N):
        raise ValueError(f"steps={steps} must be between 1 and the {len(left_N)} the net was trained on")
    chosen = torch.linspace(len(left_N) - 1, 0, steps).round().long().tolist()
    x = start
    for now, after in zip(chosen, [*chosen[1:], -1], strict=True):
        a, b = _wide(left_N[now], x), _wide(left_N[after] if after >= 0 else torch.ones(()), x)
        noise = net(x, torch.full((len(x),), now, device=x.device))
        clean = (x - (1 - a).sqrt() * noise) / a.sqrt()
        if clip is not None:
            clean = clean.clamp(-clip, clip)
            noise = (x - a.sqrt() * clean) / (1 - a).sqrt()
        spread = eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        x = b.sqrt() * clean + (1 - b - spread**2).clamp(min=0).sqrt() * noise
        if eta and after >= 0:
            x = x + spread * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return x


def guided(net: Callable[[Tensor, Tensor, Tensor], Tensor], label_B: Tensor, nothing: int, scale: float) -> Noise:
    """Noise with the label, moved away from that without one: (1 + w) e(x, c) - w e(x). Ho and Salimans 2022, arXiv:2207.12598, eq. 6.

    nothing: the label that stands for none; both run as one batch.
    """

    def tell(x: Tensor, step_B: Tensor) -> Tensor:
        if not scale:
            return net(x, step_B, label_B)
        labels = torch.cat([label_B, torch.full_like(label_B, nothing)])
        given, free = net(torch.cat([x, x]), torch.cat([step_B, step_B]), labels).chunk(2)
        return (1 + scale) * given - scale * free

    return tell


def _wide(a: Tensor, like: Tensor) -> Tensor:
    """For products with pictures."""
    return a.to(like.device, like.dtype).view(-1, *[1] * (like.dim() - 1))
