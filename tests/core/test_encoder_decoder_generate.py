"""Encoder-decoders write what transformers' generate writes: greedily, by beam search, with and without a cache, several at once."""

import pytest
import torch
import transformers as hf

from luthier.core.encoder_decoder import EncoderDecoder
from luthier.core.generate import generate_ids
from luthier.core.names import import_state
from luthier.core.reader import Memory, Sampling
from luthier.models.t5 import T5
from luthier.models.transformer import Vaswani

SOURCES = [[5, 6, 7, 8, 1], [9, 10, 1], [11, 12, 13, 14, 15, 16, 17, 1], [20, 1]]


@pytest.fixture(scope="module", params=["t5", "marian"])
def pair(request):
    """Our net and theirs with the same weights, in float64; sharp enough that no two tokens come close."""
    if request.param == "t5":
        arch = T5(vocab=40, width=16, layers=2, heads=2, head_width=8, hidden=32)
    else:
        arch = Vaswani(vocab=40, width=16, layers=2, decoder_layers=2, heads=2, hidden=32, positions=64, layout="halves", eps=1e-5)
    torch.manual_seed(3)
    net = arch.build().double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_((0.3 if request.param == "t5" else 0.8) * torch.randn_like(p))
    cls, config = (hf.T5ForConditionalGeneration, hf.T5Config) if request.param == "t5" else (hf.MarianMTModel, hf.MarianConfig)
    model = cls(config(**arch.to_config(), eos_token_id=1, forced_eos_token_id=None)).double().eval()
    state = {arch.aliases(name): tensor for name, tensor in model.state_dict().items() if arch.aliases(name)}
    with torch.no_grad():
        for ours, name in arch.names({"lm": 40}).items():
            state[name.path].copy_(net.state_dict()[ours])
    assert torch.equal(import_state(arch.names({"lm": 40}), state)["embed.token.weight"], net.embed.token.weight)
    return net, model


def theirs(model, **settings):
    longest = max(map(len, SOURCES))
    ids = torch.tensor([[*source, *[0] * (longest - len(source))] for source in SOURCES])
    mask = torch.tensor([[1] * len(source) + [0] * (longest - len(source)) for source in SOURCES])
    out = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=12, **settings)
    rows = [row[1:].tolist() for row in out]
    return [row[: row.index(1) + 1] if 1 in row else row for row in rows]


def test_greedy_equals_transformers_and_one_source_alone(pair):
    net, model = pair
    got = generate_ids(net, SOURCES, Sampling(max_tokens=12, temperature=0), eos=[1])
    assert got == theirs(model)
    assert got == [generate_ids(net, [source], Sampling(max_tokens=12, temperature=0), eos=[1])[0] for source in SOURCES]
    assert len({tuple(row) for row in got}) > 1, "the sources make a difference"


def test_the_penalty_is_for_what_was_written_not_for_the_source(pair):
    net, model = pair
    got = generate_ids(net, SOURCES, Sampling(max_tokens=12, temperature=0, repetition_penalty=1.7), eos=[1])
    assert got == theirs(model, repetition_penalty=1.7)


@pytest.mark.parametrize("samples", [1, 3])
def test_beam_search_equals_transformers(pair, samples):
    net, model = pair
    got = generate_ids(net, SOURCES, Sampling(max_tokens=12, beams=4, samples=samples), eos=[1])
    want = theirs(model, num_beams=4, num_return_sequences=samples, early_stopping=False)
    assert got == want


def test_every_step_from_the_start_gives_the_same_tokens(pair):
    net, _ = pair
    assert isinstance(net, EncoderDecoder)
    (got,) = generate_ids(net, SOURCES[:1], Sampling(max_tokens=10, temperature=0))
    written = [net.start]
    with torch.no_grad():
        for token in got:
            assert net(torch.tensor(SOURCES[:1]), decoder_ids=torch.tensor([written]))[0, -1].argmax() == token
            written.append(token)


def test_samples_follow_the_models_own_probabilities(pair):
    net, _ = pair
    rows = generate_ids(net, SOURCES[:1], Sampling(max_tokens=1, samples=4000), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = net(torch.tensor(SOURCES[:1]), decoder_ids=torch.tensor([[net.start]]))[0, -1].softmax(-1)
    share = torch.bincount(torch.tensor(rows)[:, 0], minlength=40) / 4000
    assert (share - want).abs().max() < 5 * (0.25 / 4000) ** 0.5


def test_a_memory_does_not_mix_two_sources(pair):
    net, _ = pair
    memory, sampling = Memory(), Sampling(max_tokens=6, temperature=0)
    for source in SOURCES[:2]:
        assert generate_ids(net, [source], sampling, memory=memory) == generate_ids(net, [source], sampling)
