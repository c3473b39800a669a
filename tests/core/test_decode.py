"""The decoder with the fewest operators writes what the plain path writes, for nets with ALiBi, windows and normed heads too."""

from typing import Any

import pytest
import torch

from luthier.core.decode import Decoder, decodable
from luthier.core.generate import generate_ids
from luthier.core.reader import Sampling
from luthier.models.baichuan import Baichuan
from luthier.models.bloom import Bloom
from luthier.models.llama import Llama

SIZES = {"vocab": 60, "width": 32, "layers": 3, "heads": 4}
NETS: dict[str, Any] = {
    "alibi": Bloom(**SIZES),
    "alibi, heads no power of two": Bloom(**SIZES | {"width": 36, "heads": 6}),
    "alibi and a normed head": Baichuan(**SIZES, hidden=48, alibi=True, norm_head=True),
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
    from luthier.core.cache import Cache

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


def test_all_layers_share_one_table_of_biases():
    net = NETS["alibi"].build().train()
    kept: list[torch.Tensor] = []
    ids, mask = torch.randint(0, 60, (2, 17)), torch.ones(2, 17, dtype=torch.bool)
    mask[1, :4] = False
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        net(ids, mask).sum().backward()
    tables = [t for t in kept if t.shape[-2:] == (17, 17) and t.dtype == torch.float32 and bool(t.isinf().any())]
    assert len(tables) == 3 and len({t.data_ptr() for t in tables}) == 1
