import math

import pytest
import torch

from luthier.core.cache import Cache
from luthier.core.decode import Decoder
from luthier.core.generate import generate_ids
from luthier.core.quantise import _by_blocks, int8_product, quantise
from luthier.core.reader import Sampling
from luthier.models.llama import Llama


def tiny():
    torch.manual_seed(0)
    return Llama(vocab=101, width=64, layers=2, heads=4, kv_heads=2, hidden=96, positions=256).build().eval()


def test_each_weight_is_off_by_half_a_step_at_most():
    weight = torch.randn(30, 64) * torch.logspace(-3, 2, 30)[:, None]
    stored = quantise(weight)
    assert (stored.q_OI.abs() <= 127).all() and stored.bytes == 30 * 64 + 2 * 30
    # 127 steps of a scale rounded to bfloat16 may fall short of the largest weight by 2^-9 of it, half a step more.
    assert ((stored.weight() - weight).abs() <= 0.76 * stored.scale_O.float()[:, None]).all()
    assert torch.equal(quantise(torch.zeros(3, 8)).weight(), torch.zeros(3, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5])
def test_the_product_is_that_of_the_weight_turned_back(dtype, rows):
    stored = quantise(torch.randn(48, 64))
    x = torch.randn(rows, 64).bfloat16().to(dtype)
    expected = x.double() @ stored.weight().double().T
    for product in (int8_product(x, stored), _by_blocks(x.bfloat16(), stored)):
        torch.testing.assert_close(product.double(), expected, rtol=2**-7, atol=0.05)
    assert int8_product(x, stored).dtype == dtype


def test_generation_with_int8_weights_gives_nearly_the_same_scores():
    net, token = tiny(), torch.tensor([5])
    caches = [Cache(2), Cache(2)]
    with torch.inference_mode():
        for cache in caches:
            net.hidden(torch.arange(8)[None], cache=cache)
        plain, small = Decoder(net, 1)(token, caches[0]), Decoder(net, 1, int8=True)(token, caches[1])
    assert torch.nn.functional.cosine_similarity(plain, small).item() > 0.999
    assert len(generate_ids(net, [[1, 2, 3]], Sampling(max_tokens=5, temperature=0), int8=True)[0]) == 5


@pytest.mark.slow
def test_int8_changes_the_perplexity_of_the_real_model_by_less_than_five_hundredths():
    from luthier.sources.load import load_model
    from tiny import smollm2_path

    model = load_model(str(smollm2_path()))
    assert model.tokenizer is not None
    text = (
        "The violin has four strings, tuned in fifths. Its body is made of spruce and maple, and its sound comes from the way the plates "
    )
    text += "vibrate together with the air inside. A luthier tests a plate by tapping it and listening to the note that it gives."
    ids, losses = model.tokenizer.encode(text), {}
    for int8 in (False, True):
        cache, loss = Cache(30), 0.0
        with torch.inference_mode():
            decoder = Decoder(model.net, 1, int8=int8)
            model.net.hidden(torch.tensor([ids[:1]]), cache=cache)
            scores = None
            for i, token in enumerate(ids[1:], 1):
                if scores is not None:
                    loss -= scores.float().log_softmax(-1)[0, token].item()
                scores = decoder(torch.tensor([token]), cache) if i < len(ids) - 1 else scores
        losses[int8] = loss / (len(ids) - 2)
    # Of so few tokens 0.015 is noise already: what the products' bfloat16 rounds otherwise after a change in float32's last digit.
    assert abs(math.exp(losses[True] - losses[False]) - 1) < 0.05, losses
