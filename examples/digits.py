"""The two basics of pictures on handwritten digits: a ViT that tells them, a diffusion model that draws them.

The digits are scikit-learn's (1,797 of 8 x 8 pixels). Drawings are judged by the ViT, which never saw them. Takes some minutes.
What comes out lies in runs/digits: digits.png (with Pillow), one row for each strength of guidance.
"""

import time
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from luthier.core.diffusion import guided, left, noise_loss, sample
from luthier.models.ddpm import DDPM, Denoiser
from luthier.models.vit import Vision, ViT

FOLDER = Path("runs/digits")
HELD_OUT = 360


def digits() -> tuple[Tensor, Tensor]:
    """(1797, 1, 8, 8) in -1 to 1, and what they are; shuffled once and for all."""
    found: Any = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return pixels[order], torch.tensor(found.target)[order]


def learn(net: nn.Module, loss, steps: int, rate: float) -> None:
    """AdamW with a warm-up of 50 steps and a cosine down to nothing. Losses of noise jump: a short memory of their squares serves better."""
    optimizer = torch.optim.AdamW(net.parameters(), rate, (0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=min(0.5, 50 / steps))
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def classifier(pixels: Tensor, labels: Tensor, steps: int = 500) -> Vision:
    torch.manual_seed(0)
    net = ViT(width=48, layers=3, heads=4, hidden=96, image=8, patch=2, channels=1, eps=1e-6, pooler=False, init_std=0.1).build()
    net.add_head("classify", 10)

    def loss() -> Tensor:
        at = torch.randint(len(pixels), (64,))
        shift = torch.randint(-1, 2, (2,)).tolist()  # a pixel to either side is the same digit
        return F.cross_entropy(tell(net, pixels[at].roll(shift, (2, 3))), labels[at])

    learn(net, loss, steps, 3e-3)
    return net.eval()


def tell(net: Vision, pixels: Tensor) -> Tensor:
    return net.heads["classify"](net.hidden(pixels)[:, 0])


def drawer(pixels: Tensor, labels: Tensor, steps: int = 3000) -> Denoiser:
    torch.manual_seed(0)
    net = DDPM().build()
    left_N = left(net.config.steps, "cosine")

    def loss() -> Tensor:
        at = torch.randint(len(pixels), (96,))
        seen = torch.where(torch.rand(96) < 0.1, net.nothing, labels[at])  # one in ten learns without its label
        return noise_loss(lambda x, step_B: net(x, step_B, seen), pixels[at], left_N)

    learn(net, loss, steps, 2e-3)
    return net.eval()


def draw(net: Denoiser, labels: Tensor, guidance: float, steps: int = 50) -> Tensor:
    """One picture for each label, by DDIM; the same noise every time."""
    start = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return sample(guided(net, labels, net.nothing, guidance), start, left(net.config.steps, "cosine"), steps, clip=1.0)


def show(rows: list[Tensor], path: Path) -> None:
    try:
        from PIL import Image
    except ImportError:
        return
    grid = torch.cat([torch.cat(list(row[:, 0]), 1) for row in rows])
    grey = ((grid.clamp(-1, 1) + 1) * 127.5).byte().repeat_interleave(4, 0).repeat_interleave(4, 1)
    Image.fromarray(grey.numpy()).save(path)


def main(**short: int) -> None:
    pixels, labels = digits()
    FOLDER.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    judge = classifier(pixels[HELD_OUT:], labels[HELD_OUT:], **short)
    with torch.no_grad():
        right = (tell(judge, pixels[:HELD_OUT]).argmax(-1) == labels[:HELD_OUT]).float().mean()
    print(f"ViT: {right:.1%} of {HELD_OUT} held-out digits, {time.perf_counter() - begun:.0f} s")
    begun = time.perf_counter()
    net = drawer(pixels[HELD_OUT:], labels[HELD_OUT:], **short)
    print(f"DDPM: learnt in {time.perf_counter() - begun:.0f} s")
    asked, rows = torch.arange(10).repeat(20), []
    for guidance in (0.0, 1.0, 3.0):
        drawn = draw(net, asked, guidance)
        with torch.no_grad():
            right = (tell(judge, drawn).argmax(-1) == asked).float().mean()
        print(f"guidance {guidance}: {right:.1%} of {len(asked)} drawings are told as the digit asked for")
        rows.append(drawn[:20])
    show(rows, FOLDER / "digits.png")


if __name__ == "__main__":
    main()
