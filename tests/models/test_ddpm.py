"""The diffusion net: what goes in and comes out, its file, and two kinds of pictures learnt and drawn by label in seconds."""

import math

import pytest
import torch
from torch import nn

from luthier.core.diffusion import guided, left, noise_loss, sample
from luthier.models.ddpm import DDPM, waves
from luthier.sources.load import load_model
from luthier.sources.model import Model

SMALL = DDPM(width=32, layers=2, heads=2, hidden=64, image=4, labels=2)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = SMALL.build().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


@torch.no_grad()
def test_each_patchs_noise_stands_where_the_patch_was(net):
    """Row y, column x of patch p: entry 2 y + x of the head's row p, patches counted row by row."""
    pixels, steps, labels = torch.randn(3, 1, 4, 4), torch.tensor([0, 500, 999]), torch.tensor([0, 1, 2])
    rows = net.heads["noise"](net.hidden(pixels, steps=steps, labels=labels))
    want = torch.stack([rows[:, 2 * (y // 2) + x // 2, 2 * (y % 2) + x % 2] for y in range(4) for x in range(4)], 1).view(3, 1, 4, 4)
    torch.testing.assert_close(net(pixels, steps, labels), want)


@torch.no_grad()
def test_step_label_and_every_patch_matter_and_no_label_is_the_last(net):
    pixels, steps, labels = torch.randn(1, 1, 4, 4), torch.tensor([10]), torch.tensor([1])
    base = net(pixels, steps, labels)
    assert not torch.allclose(base, net(pixels, steps + 1, labels)) and not torch.allclose(base, net(pixels, steps, labels - 1))
    moved = pixels.clone()
    moved[0, 0, 3, 3] += 1
    assert bool(((net(moved, steps, labels) - base).abs() > 1e-9).all())
    torch.testing.assert_close(net(pixels, steps), net(pixels, steps, torch.tensor([2])))


def test_waves_are_sines_of_the_step():
    want = [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)]
    torch.testing.assert_close(waves(torch.tensor([3]), 4)[0], torch.tensor(want).float())


@torch.no_grad()
def test_it_survives_a_folder(net, tmp_path):
    Model(net).save(tmp_path)
    again = load_model(str(tmp_path)).net
    pixels, steps = torch.randn(2, 1, 4, 4), torch.tensor([3, 4])
    assert again.config == SMALL and torch.equal(again(pixels, steps), net(pixels, steps))


def test_a_picture_is_learnt_and_drawn():
    """One picture, dark on the left: a few steps of training are enough to draw it out of any noise."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    net, left_N = SMALL.build(), left(100, "cosine")
    picture = torch.ones(1, 1, 4, 4)
    picture[..., :2] = -1
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    losses = []
    for _ in range(200):
        loss = noise_loss(lambda x, step: net(x, step * 10), picture.expand(64, -1, -1, -1), left_N)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    drawn = sample(guided(lambda x, step, _: net(x, step * 10), torch.zeros(8), 0, 1.0), torch.randn(8, 1, 4, 4), left_N, 20, clip=1.0)
    torch.set_default_dtype(before)
    assert sum(losses[-10:]) < 0.15 * sum(losses[:10])
    assert (drawn - picture).square().mean() < 0.05


def test_what_does_not_fit_is_refused(net):
    with pytest.raises(ValueError, match="image=5 must divide by patch=2"):
        DDPM(image=5)
    with pytest.raises(ValueError, match="no other heads"):
        net.add_head("classify", 2)
