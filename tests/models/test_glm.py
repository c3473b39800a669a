"""ChatGLM-6B against its formulas written down once more, ChatGLM2 and 3 by their key map; GLM-4 itself stands in families/."""

import math
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from oracles import FLOOR, gap, reference, sample

from luthier.core.cache import Cache
from luthier.core.names import export_state, import_state
from luthier.models.chatglm import ChatGLM
from luthier.models.glm import GLM
from luthier.sources.load import load_model
from luthier.sources.model import Model

START, GMASK = 7, 6
TINY = ChatGLM(vocab=60, width=32, layers=3, heads=2, hidden=48, positions=220, start=START, blanks=(5, GMASK))


@pytest.mark.parametrize(
    ("arch", "changes", "parameters"),
    [
        (ChatGLM, {}, 6_707_929_088),
        (ChatGLM, {"tied": True}, 6_173_286_400),
        (GLM, GLM.presets["chatglm2-6b"], 6_243_584_000),
        (GLM, GLM.presets["glm-4-9b"], 9_399_951_360),
    ],
)
def test_presets_have_the_published_number_of_parameters(arch, changes, parameters):
    with torch.device("meta"):
        net = arch(**changes).build()
    assert sum(p.numel() for p in net.parameters()) == parameters


def tiny():
    torch.manual_seed(0)
    net = TINY.build().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.15 * torch.randn_like(p))
    return net


def text(context: int, answer: int, seed: int = 0):
    """(1, T): context tokens, [gMASK], the start token, the answer."""
    ids = torch.randint(10, 60, (context + answer,), generator=torch.Generator().manual_seed(seed)).tolist()
    return torch.tensor([[*ids[:context], GMASK, START, *ids[context:]]])


def turn(x, place, base=10_000.0):
    """(T, K) rotated by (T,) places: x cos + (-second half, first half) sin."""
    half = x.shape[-1] // 2
    angle = place[:, None].float() * (1.0 / base ** (torch.arange(half).float() / half))
    cos, sin = angle.cos().double().repeat(1, 2), angle.sin().double().repeat(1, 2)
    return x * cos + torch.cat([-x[:, half:], x[:, :half]], -1) * sin


def formula(ids, stored):
    """Logits of one row (T, V) from tensors in ChatGLM's own names, layer by layer and head by head."""
    ids = ids[0].tolist()
    context, blank = ids.index(START), ids.index(GMASK)
    place = torch.tensor([i if i < context else blank for i in range(len(ids))])
    block = torch.tensor([0 if i < context else i - context + 1 for i in range(len(ids))])
    seen = torch.tensor([[j <= i or j < context for j in range(len(ids))] for i in range(len(ids))])
    layers, heads, alpha = 3, 2, math.sqrt(6)
    x = stored["transformer.word_embeddings.weight"][torch.tensor(ids)]
    for i in range(layers):
        part = {name.removeprefix(f"transformer.layers.{i}."): tensor for name, tensor in stored.items() if f"layers.{i}." in name}
        x = norm(x, part, "input_layernorm")
        qkv = x @ part["attention.query_key_value.weight"].T + part["attention.query_key_value.bias"]
        outs = []
        for head in qkv.chunk(heads, -1):
            q, k, v = head.chunk(3, -1)
            q, k = (torch.cat([turn(y[:, :8], place), turn(y[:, 8:], block)], -1) for y in (q, k))
            outs.append((q @ k.T / 16**0.5).masked_fill(~seen, -10_000.0).softmax(-1) @ v)
        x = alpha * x + torch.cat(outs, -1) @ part["attention.dense.weight"].T + part["attention.dense.bias"]
        x = norm(x, part, "post_attention_layernorm")
        up = x @ part["mlp.dense_h_to_4h.weight"].T + part["mlp.dense_h_to_4h.bias"]
        up = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        x = alpha * x + up @ part["mlp.dense_4h_to_h.weight"].T + part["mlp.dense_4h_to_h.bias"]
    x = norm(x, {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}, "final_layernorm")
    return x @ stored["lm_head.weight"].T


def norm(x, part, name):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x * part[f"{name}.weight"] + part[f"{name}.bias"]


def written(net):
    return export_state(TINY.names({"lm": 0}), dict(net.state_dict()))


@pytest.mark.parametrize("sizes", [(60, 80), (1, 5), (9, 0)])
@torch.no_grad()
def test_chatglm_is_its_formula(sizes):
    net = tiny()
    assert gap(net(text(*sizes))[0], formula(text(*sizes), written(net))) < FLOOR


@pytest.mark.parametrize(
    "spoil",
    [
        lambda net: setattr(net.blocks[1], "alpha", 1.0),
        lambda net: setattr(net, "causal", False),
        lambda net: setattr(net, "config", ChatGLM(start=START, blanks=(0, 0))),
        lambda net: setattr(net, "config", ChatGLM(start=GMASK)),
        lambda net: setattr(net.rotary, "theta", 10_010.0),
        lambda net: setattr(net, "norm", nn.Identity()),
        lambda net: setattr(net.blocks[0].attn_norm, "eps", 1e-4),
    ],
)
@torch.no_grad()
def test_the_formula_catches(spoil):
    net = tiny()
    ids = torch.cat([text(30, 0)[:, :-2], text(20, 40, seed=3)], 1)
    ids[0, 3] = 0  # a token that a wrong [gMASK] would be found at
    want = formula(ids, written(net))
    assert gap(net(ids)[0], want) < FLOOR
    spoil(net)
    assert gap(net(ids)[0], want) > 10 * FLOOR


@torch.no_grad()
def test_a_context_sees_itself_both_ways_and_an_answer_only_what_was_said():
    net, ids = tiny(), text(20, 20)
    for at in (10, 30):
        changed = ids.clone()
        changed[0, at] = (changed[0, at] + 1) % 50 + 10
        same = (net.hidden(ids) == net.hidden(changed)).all(-1)[0]
        assert same.tolist() == [at == 30 and i < 30 for i in range(42)]


@torch.no_grad()
def test_packed_padded_and_cached_texts_equal_each_alone():
    net = tiny()
    texts = [text(20, 11), text(3, 30, seed=1), text(12, 12, seed=2)]
    alone = [net(ids) for ids in texts]
    packed = net(torch.cat(texts, 1), lengths=tuple(ids.shape[1] for ids in texts))
    assert gap(packed, torch.cat(alone, 1)) < FLOOR
    for left in (True, False):
        rows, real = torch.zeros(3, 40, dtype=torch.long), torch.zeros(3, 40, dtype=torch.bool)
        for i, ids in enumerate(texts):
            place = slice(40 - ids.shape[1], 40) if left else slice(0, ids.shape[1])
            rows[i, place], real[i, place] = ids[0], True
        for i, out in enumerate(net(rows, real)):
            assert gap(out[real[i]], alone[i][0]) < FLOOR
        if left:
            cache = Cache(3)
            steps = [net(rows[:, :32], real[:, :32], cache=cache)]
            cache.rows(torch.tensor([0, 2, 1]))  # as beams do
            steps += [net(part, cache=cache) for part in rows[[0, 2, 1], 32:].split((1, 4, 3), 1)]
            for i, row in enumerate([0, 2, 1]):
                end = torch.cat(steps[1:], 1)[i]
                assert gap(end, alone[row][0, -8:]) < FLOOR


@torch.no_grad()
def test_a_context_in_two_pieces_is_refused():
    net, cache = tiny(), Cache(3)
    net(text(8, 0)[:, :4], cache=cache)
    with pytest.raises(ValueError, match="read in one pass with its start token"):
        net(text(8, 0)[:, 4:], cache=cache)


@torch.no_grad()
def test_chatglm_survives_a_folder_and_old_files_without_a_head(tmp_path):
    net = tiny()
    Model(net).save(tmp_path / "saved")
    again = load_model(str(tmp_path / "saved"))
    assert again.net.config == TINY and torch.equal(again.net(text(9, 9)), net(text(9, 9)))
    tied = TINY.fit({"transformer.word_embeddings.weight"})
    assert tied.tied and "lm_head.weight" not in {name.path for name in tied.names({"lm": 0}).values()}


@torch.no_grad()
def test_chatglm2_is_transformers_glm_under_other_names(tmp_path):
    model = reference("glm")
    stored = {"transformer.rotary_pos_emb.inv_freq": torch.ones(3), "transformer.output_layer.weight": model.lm_head.weight}
    for name, tensor in model.model.state_dict().items():
        name = name.replace("embed_tokens", "embedding.word_embeddings").replace("layers.", "encoder.layers.")
        name = name.replace("self_attn.o_proj", "self_attention.dense").replace("gate_up_proj", "dense_h_to_4h")
        name = name.replace("down_proj", "dense_4h_to_h")
        stored[f"transformer.{'encoder.final_layernorm.weight' if name == 'norm.weight' else name}"] = tensor
    for layer in range(3):
        for part in ("weight", "bias"):
            three = [stored.pop(f"transformer.encoder.layers.{layer}.self_attn.{role}_proj.{part}") for role in "qkv"]
            stored[f"transformer.encoder.layers.{layer}.self_attention.query_key_value.{part}"] = torch.cat(three)
    config = {
        "model_type": "chatglm", "padded_vocab_size": 60, "hidden_size": 32, "num_layers": 3, "num_attention_heads": 4, "kv_channels": 12,
        "multi_query_group_num": 2, "ffn_hidden_size": 64, "seq_length": 220, "layernorm_epsilon": model.config.rms_norm_eps,
        "multi_query_attention": True, "add_bias_linear": False, "add_qkv_bias": True,
    }  # fmt: skip
    arch = ChatGLM.from_config(config)
    assert isinstance(arch, GLM) and arch.to_config().items() >= config.items()
    canonical = {arch.aliases(name): tensor for name, tensor in stored.items() if arch.aliases(name)}
    table = arch.names({"lm": 0})
    assert {name.path for name in table.values()} == canonical.keys()
    net = arch.build().eval()
    net.load_state_dict(import_state(table, canonical))
    assert gap(net(sample()), model(sample()).logits) < FLOOR
    Model(net).save(tmp_path)
    again = hf.GlmForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert gap(again(sample()).logits, net(sample())) < FLOOR


def test_what_chatglms_files_ask_for_and_we_lack_is_refused_by_name():
    base = {"model_type": "chatglm", "padded_vocab_size": 60, "hidden_size": 32, "num_layers": 3, "num_attention_heads": 4}
    with pytest.raises(ValueError, match="asks for add_bias_linear=true"):
        ChatGLM.from_config(base | {"ffn_hidden_size": 9, "add_bias_linear": True})
    with pytest.raises(ValueError, match="one-dimensional positions"):
        ChatGLM.from_config(TINY.to_config() | {"position_encoding_2d": False})
    with pytest.raises(ValueError, match="lacks 'bos_token_id'"):
        ChatGLM.from_config({key: value for key, value in TINY.to_config().items() if key != "bos_token_id"})
    with pytest.raises(ValueError, match="6 dimensions has no two halves of pairs"):
        ChatGLM(width=24, heads=4)
