import torch

from luthier.core.cache import Cache
from luthier.models.gpt2 import GPT2
from luthier.models.llama import Llama


def tiny(kind: str = "llama"):
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2(vocab=61, width=16, layers=2, heads=2, positions=64).build().double().eval()
    more = {"windows": (5, 0), "qkv_bias": True, "kind": "qwen2"} if kind == "window" else {}
    net = Llama(vocab=61, width=32, layers=2, heads=4, kv_heads=2, hidden=48, positions=256, **more).build()
    return net.double().eval()


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(1))


def test_cached_steps_equal_one_pass_for_every_kind_of_position():
    for kind in ("llama", "window", "gpt2"):
        net, tokens = tiny(kind), ids(3, 20)
        whole = net(tokens)
        cache = Cache(2, capacity=4)
        parts = [net(piece, cache=cache) for piece in tokens.split([7, 1, 1, 5, 1, 5], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-10, msg=kind)


def test_left_padding_in_a_cache_changes_nothing_for_the_real_tokens():
    for kind in ("llama", "window", "gpt2"):
        net, long, short = tiny(kind), ids(1, 12), ids(1, 8)
        batch = torch.cat([long, torch.cat([torch.zeros(1, 4, dtype=torch.long), short], 1)])
        mask = torch.ones(2, 12, dtype=torch.bool)
        mask[1, :4] = False
        cache = Cache(2)
        net(batch[:, :9], mask[:, :9], cache=cache)
        both = net(batch[:, 9:], cache=cache)
        torch.testing.assert_close(both[:1], net(long)[:, 9:], rtol=0, atol=1e-10, msg=kind)
        torch.testing.assert_close(both[1:], net(short)[:, 5:], rtol=0, atol=1e-10, msg=kind)
        assert cache.keys is not None and cache.keys.sum().item() == 12 + 8


def test_rows_can_be_reordered_and_repeated_with_their_padding():
    net = tiny()
    tokens, mask = ids(2, 6), torch.tensor([[False, False, True, True, True, True], [True] * 6])
    cache = Cache(2)
    net(tokens, mask, cache=cache)
    cache.rows(torch.tensor([1, 0, 1]))
    after = net(torch.tensor([[5], [6], [7]]), cache=cache)
    for row, (source, start, token) in enumerate([(1, 0, 5), (0, 2, 6), (1, 0, 7)]):
        alone = net(torch.cat([tokens[source, start:], torch.tensor([token])])[None])[:, -1]
        torch.testing.assert_close(after[row], alone, rtol=0, atol=1e-10)


def test_a_cut_cache_forgets_the_end():
    net, tokens = tiny(), ids(1, 10)
    cache = Cache(2)
    net(tokens, cache=cache)
    cache.cut(4)
    other = (tokens[:, 4:] + 1) % 61
    torch.testing.assert_close(net(other, cache=cache), net(torch.cat([tokens[:, :4], other], 1))[:, 4:], rtol=0, atol=1e-10)


def test_room_grows_by_doubling():
    cache = Cache(1, capacity=2)
    for _ in range(9):
        cache.begin(1, 1)
        cache.update(0, torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert cache.stored[0] is not None and cache.stored[0].shape[3] == 14 and cache.length == 9
