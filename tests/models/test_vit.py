"""ViT and EVA's ViT-g against transformers: states, heads, gradients and files in both directions, mutants, sizes."""

import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from mutations import each, swap_norms
from oracles import FLOOR, gap

from luthier.core.attention import Attention
from luthier.models.vit import ViT
from luthier.sources.load import load_model
from luthier.sources.model import Model

SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, image_size=28, patch_size=2)
KINDS = {
    "vit": (hf.ViTModel, hf.ViTConfig(**SIZES, num_channels=1)),
    "vit without biases": (hf.ViTModel, hf.ViTConfig(**SIZES, qkv_bias=False, layer_norm_eps=1e-6)),
    "eva": (hf.Blip2VisionModel, hf.Blip2VisionConfig(**SIZES, attention_dropout=0.1)),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def reference(kind: str, cls=None, **changes):
    """Their model with weights that reach every parameter."""
    own, config = KINDS[kind]
    model = (cls or own)(type(config)(**(config.to_dict() | changes))).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (1.0 if p.dim() == 1 else 0.0))
    return model


def pictures(model, count: int = 2):
    channels = getattr(model.config, "num_channels", 3)
    return torch.randn(count, channels, 28, 28, generator=torch.Generator().manual_seed(0))


def ours(model, folder: Path) -> Model:
    model.save_pretrained(folder)
    return load_model(str(folder))


@kinds
@torch.no_grad()
def test_states_equal_transformers_both_ways(kind, tmp_path):
    model = reference(kind)
    read = ours(model, tmp_path / "theirs")
    want = model(pictures(model))
    hidden = read.net.hidden(pictures(model))
    assert hidden.shape == (2, 197, 32) and gap(hidden, want.last_hidden_state) < FLOOR
    if kind != "eva":
        assert gap(read.net.pooler(hidden[:, 0]), want.pooler_output) < FLOOR
    for p in read.net.parameters():
        p.mul_(1.01)
    read.save(tmp_path / "ours")
    again = type(model).from_pretrained(tmp_path / "ours", dtype=torch.float64).eval()
    assert gap(again(pictures(model)).last_hidden_state, read.net.hidden(pictures(model))) < FLOOR


@torch.no_grad()
def test_a_classifier_equals_transformers_both_ways(tmp_path):
    model = reference("vit", hf.ViTForImageClassification, num_labels=5)
    read = ours(model, tmp_path / "theirs")
    want = model(pictures(model)).logits
    assert gap(read.net.heads["classify"](read.net.hidden(pictures(model))[:, 0]), want) < FLOOR
    read.save(tmp_path / "ours")
    again = hf.ViTForImageClassification.from_pretrained(tmp_path / "ours", dtype=torch.float64).eval()
    assert gap(again(pictures(model)).logits, want) < FLOOR


@kinds
def test_gradients_equal_transformers(kind, tmp_path):
    model = reference(kind)
    net = ours(model, tmp_path).net.requires_grad_(True)
    sign = torch.randn(32, generator=torch.Generator().manual_seed(1))
    (net.hidden(pictures(model)) * sign).sum().backward()
    (model(pictures(model)).last_hidden_state * sign).sum().backward()
    mine = sum(p.grad.square().sum() for name, p in net.named_parameters() if p.grad is not None)
    want = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None)
    torch.testing.assert_close(mine, want)
    torch.testing.assert_close(net.embed.token.weight.grad, next(p.grad for p in model.parameters() if p.dim() == 4))


MUTANTS = {
    "eps ten times larger": lambda net: [setattr(part, "eps", part.eps * 10) for part in net.modules() if isinstance(part, nn.LayerNorm)],
    "another activation": lambda net: [setattr(block.ffn, "act", nn.functional.silu) for block in net.blocks],
    "attention scale": each(Attention, lambda part: setattr(part, "scale", 0.36)),
    "norm place": lambda net: [swap_norms(block) for block in net.blocks],
    "no final norm": lambda net: setattr(net, "norm", nn.Identity()),
    "places shifted": lambda net: net.embed.position.data.copy_(net.embed.position.data.roll(1, 1)),
    "patches transposed": lambda net: net.embed.token.weight.data.copy_(net.embed.token.weight.data.mT.clone()),
    "the class token negated": lambda net: net.embed.start.data.mul_(-1),
}


@kinds
@pytest.mark.parametrize("mutant", MUTANTS)
@torch.no_grad()
def test_parity_catches(kind, mutant, tmp_path):
    model = reference(kind)
    net = ours(model, tmp_path).net
    MUTANTS[mutant](net)
    assert gap(net.hidden(pictures(model)), model(pictures(model)).last_hidden_state) > 10 * FLOOR


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("vit-base-patch16-224", 86_389_248),
        ("vit-large-patch16-224", 304_351_232),
        ("vit-huge-patch14-224", 632_404_480),
        ("eva-vit-g", None),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset, parameters):
    with torch.device("meta"):
        net = ViT(**ViT.presets[preset]).build()
        if parameters is None:
            parameters = sum(p.numel() for p in hf.Blip2VisionModel(hf.Blip2VisionConfig()).parameters())
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="28 pixels a side cannot be cut into patches of 5"):
        ViT(image=28, patch=5)
    net = ViT(width=8, layers=1, heads=2, hidden=8, image=8, patch=4, channels=1).build()
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\) do not fit this model's \(1, 8, 8\)"):
        net.hidden(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="a picture has no head 'tag'"):
        net.add_head("tag", 2)
