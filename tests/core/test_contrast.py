"""The contrast is CLIP's, by transformers' own loss and by hand; BLIP-2's score is that of the nearest query."""

import math

import torch
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import image_text_contrastive_loss

from luthier.core.contrast import alike, contrastive_loss, most_alike


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_loss_is_transformers_clip_loss_in_value_and_gradient():
    image, text, scale = (x.requires_grad_() for x in (unit(6, 8, seed=0), unit(6, 8, seed=1), torch.tensor(12.0)))
    grads = []
    for loss in (contrastive_loss(alike(image, text), scale), image_text_contrastive_loss(scale * text @ image.T)):
        grads.append((loss, *torch.autograd.grad(loss, (image, text, scale))))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_two_pairs_by_hand():
    scores = torch.tensor([[0.5, 0.1], [0.3, 0.9]])
    rows = math.log(1 + math.exp(0.1 - 0.5)) + math.log(1 + math.exp(0.3 - 0.9))
    columns = math.log(1 + math.exp(0.3 - 0.5)) + math.log(1 + math.exp(0.1 - 0.9))
    torch.testing.assert_close(contrastive_loss(scores, 1.0), torch.tensor((rows + columns) / 4))


def test_a_text_is_as_near_as_the_nearest_query():
    image, text = unit(3, 5, 8, seed=2), unit(3, 8, seed=3)
    want = torch.stack([torch.stack([max(image[n, q] @ text[m] for q in range(5)) for m in range(3)]) for n in range(3)])
    torch.testing.assert_close(most_alike(image, text), want)
    torch.testing.assert_close(most_alike(image[:, :1], text), alike(image[:, 0], text))
