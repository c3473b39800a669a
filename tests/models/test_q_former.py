"""The Q-Former against transformers': queries alone, a text alone, both, with padding; files in both directions, mutants, sizes."""

import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from mutations import each
from oracles import FLOOR, gap

from luthier.core.attention import Attention
from luthier.models.q_former import QFormer
from luthier.sources.load import load_model

SIZES = dict(
    vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, max_position_embeddings=50,
    encoder_hidden_size=20, use_qformer_text_input=True,
)  # fmt: skip


def reference(**changes):
    """Their model with weights that reach every parameter."""
    model = hf.Blip2QFormerModel(hf.Blip2QFormerConfig(**SIZES | changes)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + (1.0 if p.dim() == 1 else 0.0))
    return model


def ours(model, folder: Path):
    model.save_pretrained(folder)
    return load_model(str(folder))


def drawn(*shape: int, seed: int = 0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("changes", [{}, {"use_qformer_text_input": False}, {"cross_attention_frequency": 1}])
@torch.no_grad()
def test_queries_equal_transformers_both_ways(changes, tmp_path):
    model = reference(**changes)
    read = ours(model, tmp_path / "theirs")
    queries, memory, real = drawn(2, 7, 32), drawn(2, 19, 20, seed=1), torch.ones(2, 19)
    real[1, 12:] = 0
    want = model(queries, encoder_hidden_states=memory, encoder_attention_mask=real).last_hidden_state
    assert gap(read.net.hidden(queries=queries, memory=memory, memory_mask=real), want) < FLOOR
    for p in read.net.parameters():
        p.mul_(1.01)
    read.save(tmp_path / "ours")
    again = hf.Blip2QFormerModel.from_pretrained(tmp_path / "ours", dtype=torch.float64).eval()
    want = again(queries, encoder_hidden_states=memory).last_hidden_state
    assert gap(read.net.hidden(queries=queries, memory=memory), want) < FLOOR


def both(model, net, text: int = 5):
    """Queries and a text whose second row is padded: theirs and ours."""
    states, memory, mask = drawn(2, 7 + text, 32), drawn(2, 19, 20, seed=1), torch.ones(2, 7 + text)
    mask[1, -2:] = 0
    want = model(states, query_length=7, attention_mask=mask, encoder_hidden_states=memory).last_hidden_state
    net.embed.token, net.embed.position = nn.Embedding(10, 32), nn.Embedding(10, 32)  # their text comes embedded
    net.embed.position.weight.data.zero_()
    net.embed.token.weight.data.copy_(states[0, 7:].repeat(2, 1)[: net.embed.token.num_embeddings])
    net.embed.token.weight.data[text:] = states[1, 7:]
    ids = torch.arange(2 * text).view(2, text)
    got = net.hidden(ids, mask[:, 7:], queries=states[:, :7], memory=memory)
    return got[mask.bool()], want[mask.bool()]


@torch.no_grad()
def test_queries_and_a_text_equal_transformers(tmp_path):
    model = reference()
    assert gap(*both(model, ours(model, tmp_path).net)) < FLOOR


@torch.no_grad()
def test_a_text_alone_equals_transformers(tmp_path):
    model, text = reference(), drawn(2, 5, 32)
    net = ours(model, tmp_path).net
    net.embed.token, net.embed.position = nn.Embedding(10, 32), nn.Embedding(10, 32)
    net.embed.position.weight.data.zero_()
    net.embed.token.weight.data.copy_(text.flatten(0, 1))
    assert gap(net.hidden(torch.arange(10).view(2, 5)), model(text, query_length=0).last_hidden_state) < FLOOR


MUTANTS = {
    "eps ten times larger": lambda net: [setattr(part, "eps", 1e-11) for part in net.modules() if isinstance(part, nn.LayerNorm)],
    "another activation": lambda net: [setattr(block.ffn, "act", nn.functional.silu) for block in net.blocks],
    "attention scale": each(Attention, lambda part: setattr(part, "scale", 0.36)),
    "one feed-forward": lambda net: [setattr(block, "text_ffn", block.ffn) for block in net.blocks],
    "input not normed": lambda net: setattr(net.embed, "norm", nn.Identity()),
    "no look at the picture": lambda net: setattr(net.blocks[2], "cross_norm", None),
}


@pytest.mark.parametrize("mutant", MUTANTS)
@torch.no_grad()
def test_parity_catches(mutant, tmp_path):
    model = reference()
    net = ours(model, tmp_path).net
    MUTANTS[mutant](net)
    assert gap(*both(model, net)) > (FLOOR if "eps" in mutant else 10 * FLOOR)


def test_presets_are_transformers_and_blip2s_own():
    with torch.device("meta"):
        bare = sum(p.numel() for p in hf.Blip2QFormerModel(hf.Blip2QFormerConfig()).parameters())
        mine = sum(p.numel() for p in QFormer(**QFormer.presets["blip2-qformer"]).build().parameters())
        text = sum(p.numel() for p in QFormer(**QFormer.presets["blip2-qformer-text"]).build().parameters())
    assert mine == bare + 32 * 768
    assert 180e6 < text < 190e6  # the paper, section 3.1: 188M, queries included


def test_what_is_missing_is_said():
    net = QFormer(width=8, layers=1, heads=2, hidden=8, queries=0, memory=4).build()
    with pytest.raises(ValueError, match="no queries of its own"):
        net.hidden(memory=torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="no embedding of tokens"):
        net.hidden(torch.zeros(1, 3, dtype=torch.long))
