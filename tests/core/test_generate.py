import math

import pytest
import torch
import transformers
from scipy import stats
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from luthier.core import scores as change
from luthier.core.attention import attend
from luthier.core.decode import Decoder, decodable
from luthier.core.generate import choose, generate_ids, stream_ids
from luthier.core.names import export_state
from luthier.core.reader import Memory, Sampling, left_padded
from luthier.models.gpt import GPT
from luthier.models.gpt2 import GPT2
from luthier.models.llama import Llama

VOCAB = 53
GREEDY = Sampling(max_tokens=12, temperature=0)


def pair(kind: str = "llama", seed: int = 0):
    """A tiny net of ours and the same weights in transformers, float64; weights large enough that choices differ from step to step."""
    torch.manual_seed(seed)
    if kind == "llama":
        net = Llama(vocab=VOCAB, width=32, layers=3, heads=4, kv_heads=2, hidden=48, positions=256).build()
        theirs = LlamaForCausalLM(LlamaConfig(**net.config.to_config()))
    else:
        net = GPT2(vocab=VOCAB, width=32, layers=2, heads=4, positions=256).build()
        theirs = GPT2LMHeadModel(GPT2Config(**net.config.to_config()))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    state = export_state(net.config.names({"lm": 0}), net.state_dict())
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return net.double().eval(), theirs.double().eval()


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def theirs_generate(model, rows: list[list[int]], **options) -> list[list[int]]:
    ids, mask = left_padded(rows)
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    settings = transformers.GenerationConfig(pad_token_id=0, **{"do_sample": False, "eos_token_id": None, "max_new_tokens": 12} | options)
    out = model.generate(ids, attention_mask=mask.long(), generation_config=settings)[:, ids.shape[1] :].tolist()
    eos = options.get("eos_token_id") or []
    ends = [next((i + 1 for i, token in enumerate(row) if token in eos), len(row)) for row in out]
    return [row[:end] for row, end in zip(out, ends, strict=True)]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_tokens_are_those_of_transformers_for_prompts_of_several_lengths(kind):
    net, theirs = pair(kind)
    rows = prompts(9, 4, 6)
    eos = [generate_ids(net, rows[:1], GREEDY)[0][5]]  # a token that does come
    assert generate_ids(net, rows, GREEDY) == theirs_generate(theirs, rows)
    assert generate_ids(net, rows, GREEDY, eos=eos) == theirs_generate(theirs, rows, eos_token_id=eos)
    shortest = Sampling(max_tokens=12, min_tokens=8, temperature=0)
    assert generate_ids(net, rows, shortest, eos=eos) == theirs_generate(theirs, rows, eos_token_id=eos, min_new_tokens=8)
    assert len(generate_ids(net, rows[:1], shortest, eos=eos)[0]) >= 8


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(("beams", "penalty", "seed"), [(2, 1.0, 0), (3, 0.0, 1), (4, 2.0, 2), (3, -1.0, 3)])
def test_beam_search_finds_what_transformers_finds(kind, beams, penalty, seed):
    net, theirs = pair(kind, seed)
    rows = prompts(7, 5)
    often = generate_ids(net, rows, GREEDY)
    eos = sorted({often[0][3], often[1][4]})
    ours = generate_ids(net, rows, Sampling(max_tokens=12, beams=beams, samples=2, length_penalty=penalty), eos=eos)
    options = {"num_beams": beams, "num_return_sequences": 2, "length_penalty": penalty, "eos_token_id": eos}
    assert ours == theirs_generate(theirs, rows, **options)


def test_beam_search_with_a_repetition_penalty_finds_what_transformers_finds():
    net, theirs = pair()
    rows = prompts(6)
    ours = generate_ids(net, rows, Sampling(max_tokens=10, beams=3, repetition_penalty=1.3))
    assert ours == theirs_generate(theirs, rows, num_beams=3, repetition_penalty=1.3, max_new_tokens=10)


def test_a_batch_gives_what_its_prompts_give_alone():
    net, _ = pair()
    rows = prompts(3, 11, 7, 7)
    for sampling in (GREEDY, Sampling(max_tokens=9, beams=3)):
        assert generate_ids(net, rows, sampling) == [generate_ids(net, [row], sampling)[0] for row in rows]


def test_the_cache_changes_nothing():
    net, _ = pair()
    rows, tokens = prompts(5), []
    for _ in range(12):
        tokens.append(int(net(torch.tensor([rows[0] + tokens]))[0, -1].argmax()))
    assert generate_ids(net, rows, GREEDY)[0] == tokens


def test_a_memory_reads_only_what_is_new_and_changes_nothing():
    net, _ = pair()
    memory, prompt = Memory(), prompts(6)[0]
    first = generate_ids(net, [prompt], GREEDY, memory=memory)[0]
    assert memory.cache is not None and memory.cache.length == len(memory.ids) == 6 + 11
    turn = [*prompt, *first, 9, 8, 7]
    read = []
    net.embed.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    second = generate_ids(net, [turn], GREEDY, memory=memory)[0]
    assert read[0] == 4  # the last token, which was never fed, and three new ones
    assert second == generate_ids(net, [turn], GREEDY)[0]
    other = [*prompt[:3], 1, 2]  # a conversation that branches off
    assert generate_ids(net, [other], GREEDY, memory=memory) == generate_ids(net, [other], GREEDY)
    assert generate_ids(net, [other], GREEDY, memory=memory) == generate_ids(net, [other], GREEDY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("padded", [False, True])
def test_the_decoder_gives_the_logits_of_the_plain_path(dtype, rows, padded):
    net, _ = pair()
    net = net.to(dtype)
    ids, mask = left_padded(prompts(*([8, 3, 5, 8, 6][:rows] if padded else [8] * rows)))
    from luthier.core.cache import Cache

    for copies in (True, False):
        fast, plain = Cache(3, capacity=8), Cache(3)
        with torch.inference_mode():
            decoder = Decoder(net, rows, copies=copies)
            for cache in (fast, plain):
                net.hidden(ids, mask, cache=cache)
            for step in range(4):
                token = torch.arange(rows) + 3 * step + 1
                expected = net(token[:, None], cache=plain)[:, 0]
                tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-11}
                torch.testing.assert_close(decoder(token, fast), expected, **tolerance)


def test_the_decoder_in_bfloat16_is_as_near_to_float64_as_the_plain_path():
    from luthier.core.cache import Cache

    for rows in (1, 3):
        exact, _ = pair()
        half, _ = pair()
        half.bfloat16()
        exact.load_state_dict({name: value.double() for name, value in half.state_dict().items()})
        ids, token = torch.tensor(prompts(*[8] * rows)), torch.arange(rows) + 4
        with torch.inference_mode():
            caches = [Cache(3) for _ in range(3)]
            for net, cache in zip((exact, half, half), caches, strict=True):
                net.hidden(ids, cache=cache)
            want = exact(token[:, None], cache=caches[0])[:, 0]
            plain = half(token[:, None], cache=caches[1])[:, 0]
            fast = Decoder(half, rows)(token, caches[2])
        assert (fast - want).abs().mean() < 1.5 * (plain - want).abs().mean()


def test_the_decoder_carries_low_rank_terms_and_leaves_other_nets_to_the_plain_path():
    from luthier.anatomy.anatomy import anatomy
    from luthier.tuning._tune import attach
    from luthier.tuning.lora import LoRA

    net, _ = pair()
    before = generate_ids(net, prompts(5, 5), GREEDY)
    parts = anatomy(net)
    attach(parts, LoRA(rank=3, roles=("q", "k", "v", "o", "up", "gate", "down")))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "adapters" in name:
                parameter.normal_(std=0.3)
    net.eval()
    assert decodable(net)
    fast = generate_ids(net, prompts(5, 5), GREEDY)
    assert fast == generate_ids(net, prompts(5, 5), GREEDY, fast=False) != before
    with parts.using():
        assert generate_ids(net, prompts(5, 5), GREEDY) == before
    assert decodable(pair("gpt2")[0])
    assert not decodable(GPT(vocab=60, width=32, layers=2, heads=4).build().eval())  # its norms stand behind the sublayers
    net.blocks[1].attn.window = 4
    assert decodable(net)
    net.blocks[1].attn.attend = lambda *inputs: attend(*inputs)
    assert not decodable(net)


def test_each_change_of_the_scores_is_that_of_transformers():
    scores = torch.randn(4, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    ids = torch.randint(0, 40, (4, 9), generator=torch.Generator().manual_seed(1))
    for k in (1, 5, 40, 100):
        assert torch.equal(change.top_k(scores, k), transformers.TopKLogitsWarper(k)(ids, scores))
    for p in (0.01, 0.3, 0.9, 0.999):
        assert torch.equal(change.top_p(scores, p), transformers.TopPLogitsWarper(p)(ids, scores))
    for penalty in (0.7, 1.0, 1.8):
        expected = transformers.RepetitionPenaltyLogitsProcessor(penalty)(ids, scores.clone())
        assert torch.equal(change.repetition_penalty(scores, ids.tolist(), penalty), expected)
    expected = transformers.MinNewTokensLengthLogitsProcessor(2, 5, [3, 7], device="cpu")(ids[:, :4], scores)
    assert torch.equal(change.without(scores, [7, 3]), expected)
    tied = torch.tensor([[1.0, 2.0, 2.0, 0.0]])
    assert torch.equal(change.top_k(tied, 1), transformers.TopKLogitsWarper(1)(ids, tied))
    assert change.top_k(scores, 0) is scores and change.top_p(scores, 1.0) is scores


def test_sampled_tokens_follow_the_distribution():
    scores = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)) * 2
    sampling = Sampling(temperature=0.7, top_k=9, top_p=0.95)
    chosen = choose(scores.expand(20_000, -1), sampling, torch.Generator().manual_seed(4))
    counts = torch.bincount(chosen, minlength=12).double()
    ids = torch.zeros(1, 1, dtype=torch.long)
    left = transformers.TopPLogitsWarper(0.95)(ids, transformers.TopKLogitsWarper(9)(ids, scores / 0.7))
    expected = left.double().softmax(-1)[0] * 20_000
    kept = expected > 0
    assert counts[~kept].sum() == 0 and 3 <= kept.sum() <= 9
    assert stats.chisquare(counts[kept].numpy(), expected[kept].numpy() * (20_000 / expected.sum().item())).pvalue > 0.001


def test_the_same_generator_gives_the_same_texts_and_samples_differ():
    net, _ = pair()
    sampling = Sampling(max_tokens=8, temperature=1.5, samples=3)
    runs = [generate_ids(net, prompts(4, 6), sampling, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert len(runs[0]) == 6 and len({tuple(row) for row in runs[0][:3]}) == 3


def test_a_stream_gives_the_tokens_as_they_come_and_none_after_the_end():
    net, _ = pair()
    rows = prompts(5, 8)
    whole = generate_ids(net, rows, GREEDY)
    eos = [whole[0][2]]
    steps = list(stream_ids(net, rows, GREEDY, eos=eos))
    assert [step[0] for step in steps] == whole[0][:3] + [None] * (len(steps) - 3)
    assert [step[1] for step in steps if step[1] is not None] == generate_ids(net, rows[1:], GREEDY, eos=eos)[0]


def test_a_stop_call_ends_its_row_only():
    net, _ = pair()
    rows = prompts(5, 8)
    out = generate_ids(net, rows, GREEDY, stop=lambda row, new: row == 1 and len(new) == 4)
    assert [len(row) for row in out] == [12, 4]


def test_wrong_settings_are_refused_with_the_way_out():
    net, _ = pair()
    for field, value in {"max_tokens": 0, "temperature": -1, "top_p": 0, "top_k": -1, "min_tokens": 200, "samples": 0, "beams": 0}.items():
        with pytest.raises(ValueError, match=f"{field}={value} must be"):
            Sampling(**{field: value})
    with pytest.raises(ValueError, match="samples=3 must not exceed beams=2"):
        Sampling(beams=2, samples=3)
    with pytest.raises(ValueError, match="prompt 2 has no tokens"):
        generate_ids(net, [[1], []], GREEDY)
    with pytest.raises(ValueError, match="int8"):
        generate_ids(GPT(vocab=60, width=32, layers=2, heads=4).build().eval(), [[1]], GREEDY, int8=True)


def test_a_nan_free_uniform_net_is_drawn_from_evenly():
    scores = torch.zeros(6000, 6)
    counts = torch.bincount(choose(scores, Sampling(), torch.Generator().manual_seed(0)), minlength=6)
    assert stats.chisquare(counts.numpy()).pvalue > 0.001 and math.isclose(counts.sum().item(), 6000)
