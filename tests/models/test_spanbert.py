"""The span boundary head against the paper's formula in numpy, and each mutant of it caught."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from oracles import FLOOR, gap, sample

from luthier.models.spanbert import SpanBERT
from luthier.sources.load import load_model
from luthier.sources.model import Model

ARCH = SpanBERT(vocab=60, width=32, layers=2, heads=4, hidden=64, positions=220, places=7, place_width=20)
CLEAN = 1e-13  # one head rounds less than a whole net
SPANS = [(0, 4, 9), (1, 20, 23), (1, 90, 95)]  # row, first and last masked token


def net(arch: SpanBERT = ARCH):
    model = ARCH.build().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (p.dim() == 1))
    built = arch.build().eval()
    built.load_state_dict(model.state_dict())
    return built


def read(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of every token of SPANS: the state before its span, the one behind it, its place in it."""
    places = [(row, first, last, place) for row, first, last in SPANS for place in range(last - first + 1)]
    before = torch.stack([hidden[row, first - 1] for row, first, _, _ in places])
    behind = torch.stack([hidden[row, last + 1] for row, _, last, _ in places])
    return before, behind, torch.tensor([place for *_, place in places])


def by_hand(hidden: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Section 3.2: h0 = [x_{s-1}; x_{e+1}; p_{i-s+1}]; h1 = LayerNorm(GeLU(W1 h0)); h2 = LayerNorm(GeLU(W2 h1)); y = E h2 + b."""

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def layer_norm(x, gain, bias):
        centred = x - x.mean()
        return centred / np.sqrt((centred**2).mean() + 1e-12) * gain + bias

    top, rows = "cls.pair_target_predictions.", []
    for row, first, last in SPANS:
        for i in range(first, last + 1):
            h = np.concatenate([hidden[row, first - 1], hidden[row, last + 1], weights[f"{top}position_embeddings.weight"][i - first]])
            for k in ("1", "2"):
                linear, norm = f"{top}mlp_layer_norm.linear{k}", f"{top}mlp_layer_norm.layer_norm{k}"
                h = layer_norm(
                    gelu(weights[f"{linear}.weight"] @ h + weights[f"{linear}.bias"]), weights[f"{norm}.weight"], weights[f"{norm}.bias"]
                )
            rows.append(weights["bert.embeddings.word_embeddings.weight"] @ h + weights[f"{top}bias"])
    return np.stack(rows)


@torch.no_grad()
def expected(tmp_path: Path) -> torch.Tensor:
    """From the file alone: what is stored under the published names."""
    model = Model(net())
    model.save(tmp_path)
    hidden = model.net.hidden(sample(2, 120))
    return torch.from_numpy(
        by_hand(hidden.numpy(), {name: tensor.numpy() for name, tensor in load_file(tmp_path / "model.safetensors").items()})
    )


@torch.no_grad()
def test_the_boundary_head_is_the_papers_formula(tmp_path):
    model = net()
    got = model.heads["span_boundary"](*read(model.hidden(sample(2, 120))))
    assert gap(got, expected(tmp_path)) < CLEAN


@torch.no_grad()
def test_it_sees_nothing_of_the_span_but_the_states_beside_it():
    model = net()
    hidden = model.hidden(sample(2, 120))
    inside = hidden.clone()
    for row, first, last in SPANS:
        inside[row, first : last + 1] = 7.0
    head = model.heads["span_boundary"]
    assert torch.equal(head(*read(hidden)), head(*read(inside)))
    inside[0, 10] += 1.0
    assert not torch.equal(head(*read(hidden)), head(*read(inside)))


def swapped(head):
    plain = head.forward
    head.forward = lambda before, behind, place: plain(behind, before, place)


def late(head):
    plain = head.forward
    head.forward = lambda before, behind, place: plain(before, behind, place + 1)


MUTANTS = {
    "ends swapped": swapped,
    "places one late": late,
    "no places": lambda head: nn.init.zeros_(head.place.weight),
    "one layer": lambda head: head.layers.__delitem__(1),
    "no norm in between": lambda head: head.layers[0].__delitem__(2),
    "no bias": lambda head: nn.init.zeros_(head.out.bias),
    "own matrix": lambda head: setattr(head.out, "weight", nn.Parameter(head.out.weight.flip(0))),
}


@pytest.mark.parametrize("mutant", [*MUTANTS, "eps ten times larger", "another activation"])
@torch.no_grad()
def test_the_formula_catches(mutant, tmp_path):
    changes = {"eps ten times larger": {"eps": 1e-11}, "another activation": {"act": "gelu_tanh"}}
    model = net(replace(ARCH, **changes.get(mutant, {})))
    if mutant in MUTANTS:
        MUTANTS[mutant](model.heads["span_boundary"])
    got = model.heads["span_boundary"](*read(net().hidden(sample(2, 120))))
    assert gap(got, expected(tmp_path)) > 10 * CLEAN


@torch.no_grad()
def test_a_folder_keeps_the_boundary_head_and_transformers_reads_the_rest(tmp_path):
    import transformers as hf

    model = Model(net())
    model.save(tmp_path)
    again = load_model(tmp_path)
    assert again.net.config == replace(ARCH)
    assert torch.equal(
        again.net.heads["span_boundary"](*read(model.hidden(sample()))), model.net.heads["span_boundary"](*read(model.hidden(sample())))
    )
    loaded: Any = hf.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float64)
    theirs, report = loaded
    assert not report["missing_keys"] and all(name.startswith("cls.pair_target_predictions") for name in report["unexpected_keys"])
    assert gap(model.logits(sample()), theirs.eval()(sample()).logits) < FLOOR


def test_the_encoder_has_the_published_number_of_parameters():
    for preset, parameters in (("spanbert-base-cased", 108_310_272 - 590_592), ("spanbert-large-cased", 333_579_264 - 1_049_600)):
        with torch.device("meta"):
            built = SpanBERT(**SpanBERT.presets[preset], lm=False, span_boundary=False).build()
        assert sum(p.numel() for p in built.parameters()) == parameters
