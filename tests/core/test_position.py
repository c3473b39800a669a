"""Positions against transformers' tables and the papers' formulas."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.bloom.modeling_bloom import _get_alibi_slopes
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as neox_rotary
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as gptj_rotary
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from luthier.core.position import ALiBi, RelativeBias, Rotary, relative_bucket, rotate, sinusoids, slopes
from luthier.core.scaling import DynamicNTK, Linear, Llama3, LongRoPE, YaRN, mscale


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


def test_slopes_are_the_published_ones():
    for heads in (1, 4, 6, 12, 40, 64, 112):
        torch.testing.assert_close(torch.tensor(slopes(heads)), _get_alibi_slopes(heads, torch.device("cpu")), rtol=1e-6, atol=0)
    assert slopes(8)[:2] == [1 / 2, 1 / 4] and slopes(12)[8] == 2**-0.5


def test_alibi_counts_real_tokens_between_query_and_key():
    real = torch.tensor([[False, False, True, True, False, True, True], [True] * 7])
    bias = ALiBi(4)(3, 7, torch.device("cpu"), real)
    short = ALiBi(4)(2, 4, torch.device("cpu"))
    assert torch.equal(bias[:1][:, :, 1:][..., real[0]], short) and torch.equal(bias[1:], ALiBi(4)(3, 7, torch.device("cpu")))
    assert bias[1, 0, -1].tolist() == [-1.5, -1.25, -1.0, -0.75, -0.5, -0.25, 0.0]


@pytest.mark.parametrize("length", [40, 90])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Linear("linear", 4.0), {"rope_type": "linear", "factor": 4.0}),
        (DynamicNTK("dynamic", 3.0, 64), {"rope_type": "dynamic", "factor": 3.0}),
        (YaRN("yarn", 3.0, 50), {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 50}),
        (
            YaRN("yarn", 5.0, 50, fast=20.0, slow=2.0, attention=mscale(5.0, 0.7) / mscale(5.0, 0.3), whole=False),
            {"rope_type": "yarn", "factor": 5.0, "original_max_position_embeddings": 50, "beta_fast": 20.0, "beta_slow": 2.0}
            | {"mscale": 0.7, "mscale_all_dim": 0.3, "truncate": False},
        ),
        (
            Llama3("llama3", 8.0, 50, 1.0, 4.0),
            {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 50, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        ),
        (
            LongRoPE("longrope", (1.0, 1.5, 2.0, 2.5), (3.0, 4.0, 5.0, 9.0), 50, math.sqrt(1 + math.log(2.0) / math.log(50))),
            {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 50}
            | {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [3.0, 4.0, 5.0, 9.0]},
        ),
    ],
)
def test_scaled_angles_are_transformers_angles(ours, theirs, length):
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=64, rope_parameters=theirs | {"rope_theta": 1e3})
    position = torch.arange(length)[None]
    want_cos, want_sin = LlamaRotaryEmbedding(config)(torch.zeros(1), position)
    cos, sin, _ = Rotary(8, 1e3, scaling=ours)(position, torch.float32)
    plain = Rotary(8, 1e3)(position, torch.float32)
    for mine, want in ((cos, want_cos), (sin, want_sin)):
        torch.testing.assert_close(torch.cat([mine, mine], -1), want, rtol=2e-6, atol=1e-5)
    assert torch.equal(cos, plain.cos) == (ours.kind == "dynamic" and length == 40)


def test_lengths_of_documents_that_a_base_grows_with():
    rotary = Rotary(8, scaling=DynamicNTK("dynamic", 2.0, 10))
    packed = torch.cat([torch.arange(30), torch.arange(5), torch.arange(20)])[None]
    alone = [rotary(torch.arange(n)[None], torch.float32).cos for n in (30, 5, 20)]
    assert torch.equal(rotary(packed, torch.float32).cos, torch.cat(alone, 1))
    padded = torch.cat([torch.zeros(4, dtype=torch.long), torch.arange(30), torch.full((3,), 29)])[None]
    assert torch.equal(rotary(padded, torch.float32).cos[:, 4:34], alone[0])
