"""Positions against transformers' tables and the papers' formulas."""

import math

import pytest
import torch
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as neox_rotary
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as gptj_rotary
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from luthier.core.position import RelativeBias, Rotary, relative_bucket, rotate, sinusoids


def test_rotation_is_transformers_rotation_and_turns_back():
    x = torch.randn(2, 3, 11, 8, dtype=torch.float64, requires_grad=True)
    positions = torch.arange(11).expand(2, 11) + torch.tensor([[0], [5]])
    rotation = Rotary(8, 500.0)(positions, torch.float64)
    cos, sin, _ = rotation
    want, _ = apply_rotary_pos_emb(x, x, torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))
    torch.testing.assert_close(rotate(x, rotation), want, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: rotate(x, rotation), x)


@pytest.mark.parametrize("turned", [8, 4])
def test_interleaved_and_partial_rotation_is_gptjs(turned):
    x = torch.randn(2, 3, 11, 8, dtype=torch.float64, requires_grad=True)
    positions = torch.arange(11).expand(2, 11) + torch.tensor([[0], [5]])
    rotation = Rotary(8, turned=turned, interleaved=True)(positions, torch.float64)
    sin, cos = create_sinusoidal_positions(20, turned)[positions].double().chunk(2, -1)
    head = gptj_rotary(x[..., :turned].transpose(1, 2), sin, cos).transpose(1, 2)
    torch.testing.assert_close(rotate(x, rotation), torch.cat([head, x[..., turned:]], -1), rtol=1e-6, atol=1e-6)
    assert torch.autograd.gradcheck(lambda x: rotate(x, rotation), x)


def test_partial_rotation_is_gpt_neoxs():
    x = torch.randn(2, 3, 11, 8, dtype=torch.float64)
    rotation = Rotary(8, 500.0, turned=4)(torch.arange(11)[None], torch.float64)
    cos, sin, _ = rotation
    want, _ = neox_rotary(x, x, torch.cat([cos, cos], -1), torch.cat([sin, sin], -1))
    torch.testing.assert_close(rotate(x, rotation), want, rtol=1e-12, atol=1e-12)


def test_rotated_scores_depend_on_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    rotary = Rotary(8)
    score = [
        (rotate(q, rotary(torch.tensor([[i]]), q.dtype)) * rotate(k, rotary(torch.tensor([[j]]), q.dtype))).sum()
        for i, j in ((3, 1), (40, 38))
    ]
    assert math.isclose(score[0], score[1], rel_tol=1e-5)


def test_three_published_layouts_of_sinusoids():
    marian = MarianSinusoidalPositionalEmbedding(50, 16)
    marian.weight.data = marian.create_weight()
    torch.testing.assert_close(sinusoids(50, 16, "halves"), marian.weight.data, rtol=0, atol=1e-6)
    paper = sinusoids(50, 16)
    for position, i in ((7, 0), (31, 3), (49, 7)):
        angle = position / 10_000 ** (2 * i / 16)
        assert paper[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert paper[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    tensor2tensor = sinusoids(50, 16, "tensor2tensor")
    assert tensor2tensor[9, 3].item() == pytest.approx(math.sin(9 * math.exp(-3 * math.log(10_000) / 7)), abs=1e-6)
    assert tensor2tensor[9, 11].item() == pytest.approx(math.cos(9 * math.exp(-3 * math.log(10_000) / 7)), abs=1e-6)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (32, 64), (8, 20)])
def test_relative_buckets_are_t5s(bidirectional, buckets, reach):
    distance = torch.arange(-300, 301)
    want = T5Attention._relative_position_bucket(distance, bidirectional, buckets, reach)
    assert torch.equal(relative_bucket(distance, bidirectional, buckets, reach), want)


def test_relative_bias_of_later_queries_is_the_last_rows():
    bias = RelativeBias(4, bidirectional=False)
    torch.testing.assert_close(bias(3, 50, torch.device("cpu")), bias(50, 50, torch.device("cpu"))[:, :, -3:])
