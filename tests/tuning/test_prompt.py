"""Virtual tokens before texts and in them: peft's files as the oracle, and what they have to leave as it is."""

import json
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from kinds import ENCODERS, PAIRS, THEIRS, build, check_padding_and_packing, greedy, logits, shake, tokens
from luthier.anatomy.anatomy import anatomy
from luthier.anatomy.virtual import virtual_ids
from luthier.core.generate import generate_ids
from luthier.core.reader import Memory, Sampling
from luthier.sources.foreign import wrap
from luthier.sources.generate import generate_texts
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made, tune
from pefts import ours_of
from tiny import tiny_chat

SMALL = {"length": 3}
methods = pytest.mark.parametrize("method", ["prompt", "p_tuning"])


@dataclass
class Words:
    """A tokenizer whose words are numbers."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]


def said(net: nn.Module, kind: str, ids: Tensor, **inputs: Tensor) -> Tensor:
    if kind in ENCODERS:
        return net.base_model(input_ids=ids, **inputs)[0]  # type: ignore[operator]
    return net(input_ids=ids, **({"decoder_input_ids": ids} if kind in PAIRS else {}), **inputs).logits


def peft_of(kind: str, which: str) -> peft.PeftModel:
    task = "SEQ_2_SEQ_LM" if kind in PAIRS else "CAUSAL_LM"
    torch.manual_seed(3)
    config = peft.PromptTuningConfig if which == "prompt" else peft.PromptEncoderConfig
    fields = {} if which == "prompt" else {"encoder_hidden_size": 16}
    return peft.get_peft_model(build(kind), config(task_type=task, num_virtual_tokens=3, **fields)).eval()


@pytest.mark.filterwarnings("ignore")
@methods
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "opt", "bloom", "gemma2", "phi3", "gpt_neox", "t5", "bart"])
def test_pefts_file_gives_pefts_outputs(kind: str, method: str, tmp_path: Path):
    theirs = peft_of(kind, method)
    theirs.save_pretrained(str(tmp_path))
    net = build(kind)
    read(anatomy(net), tmp_path)
    with torch.no_grad():
        want = said(theirs, kind, tokens())
        want = want if kind in PAIRS else want[:, 3:]
        torch.testing.assert_close(said(net, kind, tokens()), want, rtol=0, atol=1e-5)
        assert (want - said(build(kind), kind, tokens())).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore")
@methods
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_reads_what_our_models_write(kind: str, method: str, tmp_path: Path):
    net = ours_of(kind)
    attach(anatomy(net), made(method, SMALL)).save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "PROMPT_TUNING"
    theirs = peft.PeftModel.from_pretrained(build(kind), str(tmp_path)).eval()
    with torch.no_grad():
        torch.testing.assert_close(said(theirs, kind, tokens())[:, 3:], logits(net), rtol=0, atol=1e-4)


@methods
@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "our llama", "our t5"])
def test_training_goes_on_from_the_folder(kind: str, method: str, tmp_path: Path):
    net = build(kind)
    attached = attach(anatomy(net), made(method, SMALL))
    shake(attached.parameters)
    attached.save(tmp_path)
    again = build(kind)
    resumed = read(anatomy(again), tmp_path, trainable=True)
    assert resumed.parameters.keys() == attached.parameters.keys()
    for one, two in zip((net, again), (attached, resumed), strict=True):
        logits(one).square().mean().backward()
        torch.optim.SGD(two.parameters.values(), 0.1).step()
    torch.testing.assert_close(logits(again), logits(net), rtol=0, atol=1e-6)
    kept = read(anatomy(build(kind)), tmp_path)
    assert [name.rpartition(".")[2] for name in kept.parameters] == ["rows"]  # the encoder is not kept for use


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bert", "our llama", "our gpt2", "our bloom", "our bert", "our roberta"])
def test_padding_on_either_side_and_packing_change_nothing(kind: str):
    torch.manual_seed(1)
    net = build(kind) if kind.startswith("our") else wrap(build(kind)).net
    attach(anatomy(net), made("prompt", SMALL))
    check_padding_and_packing(net)


def test_packed_pairs_are_the_pairs_alone():
    net = build("our t5")
    attach(anatomy(net), made("prompt", SMALL | {"at": ("encoder",)}), "source")
    attach(anatomy(net), made("prompt", SMALL | {"at": ("decoder",)}), "target")
    anatomy(net).activate("source", "target")
    a, b = tokens()[:1, :5], tokens()[1:]
    want = torch.cat([net.hidden(a, decoder_ids=b[:, :4]), net.hidden(b, decoder_ids=a)], 1)
    got = net.hidden(torch.cat([a, b], 1), decoder_ids=torch.cat([b[:, :4], a], 1), lengths=(5, 8), decoder_lengths=(4, 5))
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["our llama", "our gpt2", "our bloom", "our t5"])
def test_a_cache_changes_nothing(kind: str):
    net = build(kind)
    attach(anatomy(net), made("prompt", SMALL))
    prompts = [tokens()[0].tolist(), tokens()[1, :4].tolist()]
    want = [greedy(net, prompt, 6) for prompt in prompts]
    sampling = Sampling(temperature=0.0, max_tokens=6)
    assert generate_ids(net, prompts, sampling) == want
    memory = Memory()  # a conversation's second turn
    for _ in range(2):
        assert generate_ids(net, prompts[:1], sampling, memory=memory) == want[:1]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "t5", "bart", "bloom"])
def test_their_generate_is_greedy_without_a_cache(kind: str):
    net = build(kind)
    attach(anatomy(net), made("prompt", SMALL))
    net.generation_config.decoder_start_token_id = 0  # type: ignore[union-attr]
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[0, :3] = 0
    options = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 0}
    with_cache, without = (net.generate(tokens(), attention_mask=mask, use_cache=cached, **options) for cached in (True, False))
    assert torch.equal(with_cache, without)
    alone = net.generate(tokens()[:1, 3:], **options)
    assert torch.equal(alone[0, -5:], with_cache[0, -5:])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "bart", "our llama", "our gpt2", "our t5", "our bert"])
def test_a_row_in_a_mixed_batch_is_the_row_alone(kind: str):
    net = build(kind)
    body = anatomy(net)
    attach(body, made("prompt", SMALL), "one")
    attach(body, made("p_tuning", {"length": 5}), "two")
    attach(body, made("lora", {"rank": 2}), "three")
    wanted = []
    for names in (("one",), ("two",), ("three",), ()):
        with body.using(*names):
            wanted.append(logits(net))
    for rows in ((0, 1), (3, 2), (1, 3)):
        with body.using("one", "two", "three", rows=torch.tensor([[row if row < 3 else -1] for row in rows])):
            got = logits(net)
        for i, row in enumerate(rows):
            torch.testing.assert_close(got[i], wanted[row][i], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama"])
@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_heads_and_labels_know_nothing_of_it(kind: str, auto: type):
    net = auto.from_config(CONFIG_MAPPING[kind](**THEIRS[kind], num_labels=3)).eval()  # type: ignore[attr-defined]
    attached = attach(anatomy(net), made("prompt", SMALL))
    one = auto is AutoModelForSequenceClassification
    out = net(input_ids=tokens(), labels=torch.tensor([0, 2]) if one else tokens() % 3)
    assert out.logits.shape == ((2, 3) if one else (2, 8, 3))
    out.loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in attached.parameters.values())


def test_where_a_prompt_starts():
    net = build("our llama")
    body = anatomy(net)
    body.tokenizer = Words()
    weight = net.embed.token.weight.detach().clone()  # type: ignore[union-attr]

    def rows(**fields) -> Tensor:
        attached = attach(body, made("prompt", fields))
        value = next(iter(attached.state().values())).clone() if attached.state() else torch.empty(0)
        body.remove("default")
        return value

    uniform = rows(length=500)
    assert uniform.abs().max() <= 0.5 and abs(float(uniform.std()) - 12**-0.5) < 0.01
    assert abs(float(rows(length=500, start="scale").std() / weight.std()) - 1) < 0.05
    sampled = rows(length=99, start="vocabulary")
    assert torch.equal(sampled.sort(0).values, weight.sort(0).values)  # each once
    with pytest.raises(ValueError, match="100 rows cannot be sampled among 99"):
        rows(length=100, start="vocabulary")
    assert torch.equal(rows(length=5, text="7 8"), weight[[7, 8, 7, 8, 7]])
    labelled = rows(length=3, labels=("4 5", "6"))
    torch.testing.assert_close(labelled[:2], torch.stack([weight[4:6].mean(0), weight[6]]))
    assert not net.embed.token.weight.requires_grad  # type: ignore[union-attr]


def test_a_hard_prompt_is_its_text():
    for kind in ("our llama", "our gpt2", "llama", "gpt2"):
        net = build(kind)
        body = anatomy(net)
        body.tokenizer = Words()
        text = tokens()
        whole = net(torch.cat([torch.tensor([[7, 8]] * 2), text], 1))
        attached = attach(body, made("prompt", {"text": "7 8", "hard": True}))
        after = net(text)
        got, want = (x if isinstance(x, Tensor) else x.logits for x in (after, whole))
        torch.testing.assert_close(got, want[:, 2:], rtol=0, atol=1e-5)
        assert not attached.parameters


def test_p_tuning_is_the_papers_formula():
    net = build("our gpt2")
    attached = attach(anatomy(net), made("p_tuning", {"length": 4, "layers": 1}))
    encoder = net.embed.token.adapters["default"]  # type: ignore[union-attr, index]
    p = {name.rpartition("prompt.")[2]: value.detach() for name, value in attached.parameters.items()}

    def run(x: Tensor, end: str) -> Tensor:
        h = c = torch.zeros(16)
        out = []
        for row in x:
            gates = (
                p[f"lstm.weight_ih_l0{end}"] @ row
                + p[f"lstm.bias_ih_l0{end}"]
                + p[f"lstm.weight_hh_l0{end}"] @ h
                + p[f"lstm.bias_hh_l0{end}"]
            )
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        return torch.stack(out)

    both = torch.cat([run(p["words"], ""), run(p["words"].flip(0), "_reverse").flip(0)], 1)
    want = F.relu(both @ p["inner.weight"].T + p["inner.bias"]) @ p["outer.weight"].T + p["outer.bias"]
    torch.testing.assert_close(encoder.table(), want)


@pytest.mark.parametrize("kind", ["our llama", "our bert", "llama", "bert"])
def test_pseudo_tokens_stand_where_the_text_has_them(kind: str, tmp_path: Path):
    net = build(kind)
    attached = attach(anatomy(net), made("p_tuning", {"length": 4, "place": "text", "encoder": "mlp"}))
    mine = virtual_ids(attached.anatomy)
    ids = torch.cat([tokens()[:1, :3], mine[None, :2], tokens()[:1, 3:], mine[None, 2:]], 1)
    out = net(ids)
    got = out if isinstance(out, Tensor) else out.logits
    assert got.shape[1] == ids.shape[1]
    rows = attached.anatomy.embed.around.adapters["default"].table().detach()  # type: ignore[union-attr, index, operator]
    again = build(kind)
    with torch.no_grad():  # the same vectors as words of the vocabulary
        anatomy(again).embed.module.weight[90:94] = rows  # type: ignore[union-attr, index]
    plain = again(torch.where(ids >= 99, 90 + ids - mine[0], ids))
    want = plain if isinstance(plain, Tensor) else plain.logits
    torch.testing.assert_close(got[..., :90], want[..., :90], rtol=0, atol=1e-5)
    attached.save(tmp_path)
    read(anatomy(fresh := build(kind)), tmp_path)
    loaded = fresh(ids)
    torch.testing.assert_close(loaded if isinstance(loaded, Tensor) else loaded.logits, got, rtol=0, atol=1e-6)


def test_the_base_trains_at_its_own_rate():
    net = build("our llama")
    attached = attach(anatomy(net), made("p_tuning", {"length": 3, "base_rate": 1e-4}))
    assert {group.rate for group in attached.groups()} == {None, 1e-4}
    base = logits(build("our llama"))
    with attached.anatomy.using():
        torch.testing.assert_close(logits(net), base, rtol=0, atol=1e-5)
    logits(net).square().mean().backward()
    assert all(p.grad is not None for p in attached.parameters.values())


@pytest.mark.parametrize("kind", ["our gpt2", "our llama"])
def test_a_text_beyond_the_positions_is_refused_and_the_model_stays(kind: str):
    net = build(kind)
    attached = attach(anatomy(net), made("prompt", {"length": 1020 if kind == "our gpt2" else 100}))
    if kind == "our gpt2":
        with pytest.raises(ValueError, match="beyond the model's"):
            logits(net)
    with attached.anatomy.using():
        torch.testing.assert_close(logits(net), logits(build(kind)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["our gpt2", "our llama", "gpt2", "llama"])
@pytest.mark.parametrize("method", ["prompt", "p_tuning", "prefix", "p_tuning_v2"])
def test_one_that_leaves_no_room_for_a_text_is_refused_at_once(kind: str, method: str):
    body = anatomy(build(kind) if kind.startswith("our") else wrap(build(kind)).net)
    with pytest.raises(ValueError, match="length=5000 leaves no room for a text: the model has [0-9]+ positions"):
        attach(body, made(method, {"length": 5000}))
    assert not body.adapters


def test_a_start_that_would_be_left_out_is_refused():
    for fields in ({"labels": ("good", "bad"), "length": 1}, {"text": "so", "start": "scale"}):
        with pytest.raises(ValueError, match="prompt"):
            made("prompt", fields)
    with pytest.raises(ValueError, match="the label ' ' has no word to start from"):
        tune(tiny_chat(), "prompt", labels=("good", " "))


@pytest.mark.parametrize("kind", ["our bert", "bert"])
def test_where_a_head_reads_the_first_token_they_stand_behind_it(kind: str, tmp_path: Path):
    net = build(kind) if kind == "our bert" else wrap(build(kind)).net
    net.add_head("classify", 2)  # type: ignore[operator]
    body = anatomy(net)
    attached = attach(body, made("prompt", SMALL))
    mine = virtual_ids(body).expand(2, -1)
    with_them = torch.cat([tokens()[:, :1], mine, tokens()[:, 1:]], 1)
    got = net.hidden(tokens())  # type: ignore[operator]
    with body.using():
        want = net.hidden(with_them)  # type: ignore[operator]
        assert not torch.allclose(got, net.hidden(tokens()), atol=1e-3)  # type: ignore[operator]
    torch.testing.assert_close(got, torch.cat([want[:, :1], want[:, 1 + mine.shape[1] :]], 1), rtol=0, atol=1e-5)
    attached.save(tmp_path)
    body.remove("default")
    read(body, tmp_path)
    torch.testing.assert_close(net.hidden(tokens()), got, rtol=0, atol=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["prompt", "prefix", "p_tuning_v2"])
def test_generation_counts_the_positions_that_an_adapter_takes_before_it_writes(kind: str):
    model = tiny_chat(positions=40)
    tune(model, kind, length=10)
    assert len(generate_texts(model, ["abcdefgh"], max_tokens=22, temperature=0)) == 1
    with pytest.raises(ValueError, match="40 positions, of which the adapter takes 10; shorten"):
        generate_texts(model, ["abcdefgh"], max_tokens=23)
    assert len(generate_texts(tiny_chat(positions=40), ["abcdefgh"], max_tokens=32, temperature=0)) == 1
