"""Prefixes at the attention call: peft's files as the oracle, and what a prefix has to leave as it is."""

import json
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, BartConfig, GPT2Config, PreTrainedModel, RobertaConfig

from kinds import ENCODERS, PAIRS, build, check_padding_and_packing, greedy, logits, shake, tokens
from luthier.anatomy.anatomy import anatomy
from luthier.core.generate import generate_ids
from luthier.core.reader import Sampling
from luthier.sources.foreign import wrap
from luthier.tuning._attached import Attached
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made
from pefts import ours_of

SMALL = {"length": 3, "hidden": 8}
methods = pytest.mark.parametrize("method, fields", [("prefix", SMALL), ("p_tuning_v2", {"length": 3})], ids=["prefix", "p_tuning_v2"])


def start(kind: str, method: str = "prefix", fields: dict = SMALL) -> tuple[nn.Module, Attached]:
    net = build(kind)
    torch.manual_seed(5)
    return net, attach(anatomy(net), made(method, fields))


def states(net: nn.Module, kind: str, ids: Tensor, **inputs: Tensor) -> Tensor:
    """What a transformers model says, of an encoder its last states."""
    if kind in ENCODERS:
        body = net.base_model if isinstance(net, PreTrainedModel) else net
        return body(input_ids=ids, **inputs)[0]
    return net(input_ids=ids, **({"decoder_input_ids": ids} if kind in PAIRS else {}), **inputs).logits


def peft_of(kind: str, **fields) -> peft.PeftModel:
    task = "SEQ_2_SEQ_LM" if kind in PAIRS else "FEATURE_EXTRACTION" if kind in ENCODERS else "CAUSAL_LM"
    torch.manual_seed(3)
    body = build(kind).base_model if kind in ENCODERS else build(kind)
    return peft.get_peft_model(body, peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=3, **fields)).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "bart", "qwen3", "gemma2", "phi3", "gpt_neox", "opt", "roberta"])
def test_pefts_file_gives_pefts_outputs(kind: str, tmp_path: Path):
    theirs = peft_of(kind)
    theirs.save_pretrained(str(tmp_path))
    net = build(kind)
    read(anatomy(net), tmp_path)
    with torch.no_grad():
        want = states(theirs, kind, tokens())
        torch.testing.assert_close(states(net, kind, tokens()), want, rtol=0, atol=1e-5)
        assert (want - states(build(kind), kind, tokens())).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@methods
def test_peft_reads_what_our_models_write(kind: str, method: str, fields: dict, tmp_path: Path):
    net = ours_of(kind)
    attached = attach(anatomy(net), made(method, fields))
    attached.save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "PREFIX_TUNING"
    if kind == "bert":
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"task_type": "FEATURE_EXTRACTION"}))
    body = build(kind).base_model if kind == "bert" else build(kind)
    theirs = peft.PeftModel.from_pretrained(body, str(tmp_path)).eval()
    with torch.no_grad():
        want = net.hidden(tokens()) if kind == "bert" else logits(net)
        torch.testing.assert_close(states(theirs, kind, tokens()), want, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_another_shape_is_refused_and_leaves_the_model(tmp_path: Path):
    peft_of("gpt2").save_pretrained(str(tmp_path))
    net = build("llama")  # fewer key-value heads
    with pytest.raises(ValueError, match=r"decoder.self is \(3, 128\) in the file, here it is \(3, 64\)"):
        read(anatomy(net), tmp_path)
    torch.testing.assert_close(logits(net), logits(build("llama")), rtol=0, atol=0)


def test_models_that_compute_their_attention_alone_are_refused():
    net = build("bloom")
    with pytest.raises(ValueError, match="BloomForCausalLM computes .* by itself"):
        attach(anatomy(net), made("prefix", SMALL))
    torch.testing.assert_close(logits(net), logits(build("bloom")), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "bart", "t5", "our llama", "our t5"])
def test_training_goes_on_from_the_folder(kind: str, tmp_path: Path):
    net, attached = start(kind)
    shake(attached.parameters)
    attached.save(tmp_path)
    again = build(kind)
    resumed = read(anatomy(again), tmp_path, trainable=True)
    assert resumed.parameters.keys() == attached.parameters.keys()
    for one, two in zip((net, again), (attached, resumed), strict=True):
        logits(one).square().mean().backward()
        torch.optim.SGD(two.parameters.values(), 0.1).step()
    torch.testing.assert_close(logits(again), logits(net), rtol=0, atol=0)
    flat = build(kind)
    kept = read(anatomy(flat), tmp_path)
    assert all(name.endswith(".prefix.prefix") for name in kept.parameters)  # the MLP is not kept for use


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "gpt_neox", "bart", "t5", "phi3"])
def test_sdpa_is_eager(kind: str):
    net, attached = start(kind)
    want = logits(net)
    net.set_attn_implementation("eager")  # after attaching
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-5)
    with attached.anatomy.using():
        assert (logits(net) - want).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "our llama", "our gpt2", "our bloom", "our bert", "our roberta", "bert"])
def test_padding_on_either_side_and_packing_change_nothing(kind: str):
    torch.manual_seed(1)
    net = build(kind) if kind.startswith("our") else wrap(build(kind)).net
    attached = attach(anatomy(net), made("prefix", SMALL))
    check_padding_and_packing(net)
    assert attached.anatomy.active


@pytest.mark.parametrize("kind", ["our llama", "our gpt2", "our bloom", "our t5"])
def test_a_cache_changes_nothing(kind: str):
    net, _ = start(kind)
    prompts = [tokens()[0].tolist(), tokens()[1, :4].tolist()]
    ids = [greedy(net, prompt, 6) for prompt in prompts]
    assert [list(row)[-6:] for row in generate_ids(net, prompts, Sampling(temperature=0.0, max_tokens=6))] == ids


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "t5", "bart"])
def test_their_generate_is_greedy_without_a_cache(kind: str):
    net, _ = start(kind)
    net.generation_config.decoder_start_token_id = 0  # type: ignore[union-attr]
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[0, :3] = 0
    options = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 0}
    with_cache, without = (net.generate(tokens(), attention_mask=mask, use_cache=cached, **options) for cached in (True, False))
    assert torch.equal(with_cache, without)
    alone = net.generate(tokens()[:1, 3:], **options)
    assert torch.equal(alone[0, -5:], with_cache[0, -5:])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "bart", "our llama", "our bert", "our t5"])
@pytest.mark.parametrize("before", [True, False])
def test_recomputation_gives_equal_gradients(kind: str, before: bool):
    def on(net: nn.Module) -> None:
        if kind.startswith("our"):
            net.recompute = True  # type: ignore[assignment]
        else:
            net.activation_checkpointing_enable()  # type: ignore[operator]
            net.train()

    grads = []
    for recompute in (False, True):
        net = build(kind)
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for module in net.modules():
            module.__dict__.update({key: 0.0 for key in ("dropout", "attention_dropout", "activation_dropout") if key in vars(module)})
        if recompute and before:
            on(net)
        torch.manual_seed(5)
        attached = attach(anatomy(net), made("prefix", SMALL))
        if recompute and not before:
            on(net)
        with attached.anatomy.using("default"):
            out = logits(net)
        if kind.startswith("our"):
            attached.anatomy.activate()  # the set belongs to the batch, not to the time of backward
        out.square().mean().backward()
        grads.append({name: p.grad for name, p in attached.parameters.items()})
    for name, grad in grads[0].items():
        assert grad is not None and grad.abs().sum() > 0
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "bart", "our llama", "our gpt2", "our t5"])
def test_a_row_in_a_mixed_batch_is_the_row_alone(kind: str):
    net = build(kind)
    body = anatomy(net)
    attach(body, made("prefix", SMALL), "one")
    attach(body, made("p_tuning_v2", {"length": 5}), "two")
    attach(body, made("lora", {"rank": 2}), "three")
    want = [logits(net)]
    wanted = []
    for names in (("one",), ("two",), ("three",), ()):
        with body.using(*names):
            wanted.append(logits(net))
    rows = torch.tensor([[0], [1]])
    with body.using("one", "two", "three", rows=rows):
        got = logits(net)
    torch.testing.assert_close(got[0], wanted[0][0], rtol=0, atol=2e-5)
    torch.testing.assert_close(got[1], wanted[1][1], rtol=0, atol=2e-5)
    with body.using("one", "two", "three", rows=torch.tensor([[-1], [2]])):
        got = logits(net)
    torch.testing.assert_close(got[0], wanted[3][0], rtol=0, atol=2e-5)
    torch.testing.assert_close(got[1], wanted[2][1], rtol=0, atol=2e-5)
    assert want


@pytest.mark.slow
def test_the_published_counts():
    def count(net: nn.Module, method: str, **fields) -> int:
        return sum(p.numel() for p in attach(anatomy(net), made(method, fields)).parameters.values())

    tall = {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 8,
    }  # what counts; the rest is small
    medium = AutoModel.from_config(GPT2Config(n_embd=1024, n_layer=24, n_head=16, n_inner=8, vocab_size=8), dtype=torch.bfloat16)
    large = AutoModel.from_config(RobertaConfig(vocab_size=8, **tall), dtype=torch.bfloat16)
    bart = AutoModel.from_config(BartConfig(vocab_size=8, encoder_ffn_dim=8, decoder_ffn_dim=8), dtype=torch.bfloat16)
    assert count(medium, "prefix", length=5) == 25_744_896
    anatomy(medium).remove("default")
    assert count(medium, "p_tuning_v2", length=5) == 245_760
    for length, numbers in ((8, 393_216), (16, 786_432), (128, 6_291_456)):
        assert count(large, "p_tuning_v2", length=length) == numbers
        anatomy(large).remove("default")
    assert count(bart, "p_tuning_v2", length=200) == 14_745_600


@dataclass
class Words:
    """A tokenizer that always reads the same."""

    ids: list[int]

    def encode(self, _: str) -> list[int]:
        return self.ids


@methods
def test_a_prefix_of_real_words_is_the_words_before_the_text(method: str, fields: dict):
    """What causal attention has made of earlier words is what it sees of them: keys and values at positions 0, 1, 2."""
    for kind in ("llama", "gpt2", "our llama", "our gpt2", "our bloom"):
        net = build(kind)
        body = anatomy(net)
        words, text = tokens()[:, :3], tokens()[:1, 3:]
        whole = net(torch.cat([words[:1], text], 1))
        want = whole if isinstance(whole, Tensor) else whole.logits

        body.tokenizer = Words(words[0].tolist())
        attach(body, made(method, {**fields, "start": "three words here"}))
        after = net(text)
        got = after if isinstance(after, Tensor) else after.logits
        if kind == "our bloom":  # a prefix has no bias, so no distance
            continue
        torch.testing.assert_close(got[0], want[0, 3:], rtol=0, atol=1e-3)
