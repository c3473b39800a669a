"""The decoder with the fewest operators writes what the plain path writes, for nets with ALiBi, windows and normed heads too."""

from typing import Any

import pytest
import torch

from luthier.core import native
from luthier.core.cache import Cache
from luthier.core.decode import Decoder, decodable
from luthier.core.generate import generate_ids
from luthier.core.quantise import quantise
from luthier.core.reader import Sampling
from luthier.models.baichuan import Baichuan
from luthier.models.bloom import Bloom
from luthier.models.gpt2 import GPT2
from luthier.models.gpt3 import GPT3
from luthier.models.llama import Llama
from luthier.tuning._tune import tune
from tiny import tiny_chat

compiled = pytest.mark.skipif(native.library() is None, reason="no C++ compiler here, or LUTHIER_NATIVE=0: torch's operators do the work")
SIZES = {"vocab": 60, "width": 32, "layers": 3, "heads": 4}
NETS: dict[str, Any] = {
    "rotary, biases, heads in groups": Llama(**SIZES, kv_heads=2, hidden=50, kind="qwen2", qkv_bias=True),
    "normed queries and keys": Llama(**SIZES, kv_heads=2, hidden=48, kind="qwen3", head_width=12),
    "alibi": Bloom(**SIZES),
    "alibi, heads no power of two": Bloom(**SIZES | {"width": 36, "heads": 6}),
    "alibi and a normed head": Baichuan(**SIZES, hidden=48, alibi=True, norm_head=True),
    "learned positions": GPT2(**SIZES, positions=40),
    "learned positions and windows": GPT3(**SIZES, positions=40, windows=(0, 5)),
    "normed head": Baichuan(**SIZES, hidden=48, norm_head=True),
    "windows": Llama(**SIZES, kv_heads=2, hidden=48, kind="mistral", windows=(5, 0, 9)),
}


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_each_step_gives_the_scores_of_the_plain_path(name: str):
    torch.manual_seed(0)
    net = NETS[name].build().double().eval()
    for p in net.parameters():
        p.normal_(std=0.3)
    assert decodable(net)
    ids = torch.randint(0, 60, (2, 14))
    for mask in (None, torch.tensor([[1] * 14, [0] * 3 + [1] * 11]).bool()):
        cache = Cache(3)
        net.hidden(ids[:, :6], None if mask is None else mask[:, :6], cache=cache)
        decoder = Decoder(net, 2)
        for t in range(6, 14):
            want = net(ids[:, : t + 1], None if mask is None else mask[:, : t + 1])[:, -1]
            torch.testing.assert_close(decoder(ids[:, t], cache), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_texts_are_the_same_fast_and_plain(name: str):
    torch.manual_seed(0)
    net = NETS[name].build().eval()
    for p in net.parameters():
        p.data.normal_(std=0.3)
    prompts, sampling = [[3, 4, 5], [7, 8, 9, 10, 11, 12, 13]], Sampling(max_tokens=12, temperature=0)
    assert generate_ids(net, prompts, sampling, fast=True) == generate_ids(net, prompts, sampling, fast=False)


def close(ours: torch.Tensor, theirs: torch.Tensor, floor: float) -> None:
    assert (ours.double() - theirs.double()).abs().max() <= floor * theirs.double().abs().max()


@compiled
@pytest.mark.parametrize("dtype, floor", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("rows", [1, 2, 5, 11])
@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_the_compiled_step_gives_the_scores_of_the_plain_path_in_float64(name: str, rows: int, dtype: torch.dtype, floor: float):
    torch.manual_seed(0)
    net = NETS[name].build().to(dtype).eval()
    for p in net.parameters():
        p.normal_(std=0.2)
    wide = NETS[name].build().double().eval()
    wide.load_state_dict(net.state_dict())
    ids, mask = torch.randint(0, 60, (rows, 13)), torch.ones(rows, 13, dtype=torch.bool)
    mask[rows // 2, :4] = rows == 1
    caches = Cache(3), Cache(3)
    net.hidden(ids[:, :6], mask[:, :6], cache=caches[0])
    wide.hidden(ids[:, :6], mask[:, :6], cache=caches[1])
    decoder = Decoder(net, rows)
    assert decoder.step is not None
    for t in range(6, 13):
        hidden = wide.hidden(ids[:, t : t + 1], None, cache=caches[1])
        close(decoder(ids[:, t], caches[0]), wide.logits(hidden)[:, 0], floor)


@compiled
@torch.no_grad()
def test_the_compiled_step_holds_weights_in_8_bits_and_low_rank_terms_and_does_not_depend_on_the_number_of_threads():
    torch.manual_seed(0)
    model = tiny_chat(width=48)
    net = model.net.eval()
    for module in net.modules():
        if type(module) is torch.nn.Linear:
            module.weight.data = quantise(torch.randn_like(module.weight) * 0.2).weight()  # turned back, so that 8 bits lose nothing
    for value in tune(model, "lora", rank=3, roles=["q", "v", "gate", "down"]).parameters.values():
        value.data.normal_(std=0.3)
    ids = torch.randint(0, net.vocab, (2, 9))
    want = net.double()(ids)[:, -1]
    net.float()
    scores, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        cache = Cache(len(net.order))
        net.hidden(ids[:, :8], cache=cache)
        decoder = Decoder(net, 2, int8=True)
        assert decoder.step is not None and decoder.step.all[0].qkv.rank == 6
        scores.append(decoder(ids[:, 8], cache))
    torch.set_num_threads(before)
    close(scores[0], want, 1e-5)
    assert scores[0].equal(scores[1]) and scores[0].equal(scores[2])


def test_all_layers_share_one_table_of_biases():
    net = NETS["alibi"].build().train()
    kept: list[torch.Tensor] = []
    ids, mask = torch.randint(0, 60, (2, 17)), torch.ones(2, 17, dtype=torch.bool)
    mask[1, :4] = False
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        net(ids, mask).sum().backward()
    tables = [t for t in kept if t.shape[-2:] == (17, 17) and t.dtype == torch.float32 and bool(t.isinf().any())]
    assert len(tables) == 3 and len({t.data_ptr() for t in tables}) == 1
