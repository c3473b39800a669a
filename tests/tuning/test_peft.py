"""Adapters cross between us and peft 0.21.2, both ways, on transformers models and on ours: equal logits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinds import LESS, THEIRS, build, logits, shake
from luthier.anatomy.anatomy import anatomy
from luthier.tuning._read import read
from luthier.tuning._tune import attach, made
from pefts import ours_of, saved_by_peft, with_peft


def crossed(name: str, variants: dict[str, dict]) -> pytest.MarkDecorator:
    """Every kind of model with the plain variant; some kinds meet the others in the long run only."""
    cases = [(kind, variant) for kind in THEIRS for variant in variants]
    marks = [pytest.mark.slow if kind in LESS and variant != "plain" else () for kind, variant in cases]
    params = [pytest.param(kind, variants[v], id=f"{kind}-{v}", marks=mark) for (kind, v), mark in zip(cases, marks, strict=True)]
    return pytest.mark.parametrize(f"kind, {name}", params)


FIELDS = {
    "plain": {"roles": ("q", "v"), "rank": 4},
    "everything": {
        "roles": ("q", "k", "v", "o"),
        "rank": 4,
        "ranks": {"q": 2},
        "rslora": True,
        "also_train": ("embed",),
        "blocks": "last 1",
    },
    "embedding": {"roles": ("q", "embed"), "alpha": 3.0, "also_train": ("attn_norm",)},
}
SETTINGS = {
    "plain": {},
    "patterns": {"use_rslora": True, "rank_pattern": {"q_proj": 2, "query": 3}, "alpha_pattern": {"v_proj": 9}},
    "layers": {"layers_to_transform": [1]},
}


@crossed("fields", FIELDS)
def test_peft_loads_what_we_save(kind: str, fields: dict, tmp_path):
    if kind == "modernbert" or kind == "bart" or kind == "t5":
        fields = fields | {"also_train": tuple(role for role in fields.get("also_train", ()) if role != "attn_norm")}
    net = build(kind)
    attached = attach(anatomy(net), made("lora", fields))
    shake(attached.parameters)
    attached.save(tmp_path)
    torch.testing.assert_close(logits(with_peft(kind, tmp_path)), logits(net), rtol=0, atol=1e-5)


@crossed("settings", SETTINGS)
def test_we_load_what_peft_saves(kind: str, settings: dict, tmp_path):
    want = saved_by_peft(kind, tmp_path, **settings)
    net = build(kind)
    read(anatomy(net), tmp_path)
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-5)
    assert not torch.allclose(want, logits(build(kind)))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "bloom", "gpt2", "bert"])
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_our_own_models_cross_both_ways(kind: str, fields: dict, tmp_path):
    net = ours_of(kind)
    attached = attach(anatomy(net), made("lora", fields))
    shake(attached.parameters)
    attached.save(tmp_path / "ours")
    wrapped = with_peft(kind, tmp_path / "ours")
    torch.testing.assert_close(logits(wrapped), logits(net), rtol=0, atol=1e-5)
    wrapped.save_pretrained(str(tmp_path / "theirs"))  # type: ignore[operator]
    for folder in ("ours", "theirs"):  # peft's copy of a fused adapter is one shared A
        again = ours_of(kind)
        back = read(anatomy(again), tmp_path / folder)
        torch.testing.assert_close(logits(again), logits(net), rtol=0, atol=1e-5)
        if folder == "ours" and "also_train" not in fields:
            assert {name: p.shape for name, p in back.parameters.items()} == {name: p.shape for name, p in attached.parameters.items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_peft_shared_a_is_read_by_copying(kind: str, tmp_path):
    want = saved_by_peft(kind, tmp_path)
    net = ours_of(kind)
    read(anatomy(net), tmp_path)
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "bert"])
@pytest.mark.parametrize("saved", [["embed"], ["head"], ["embed", "head"]], ids="-".join)
def test_modules_that_peft_saved_whole_keep_or_lose_their_tie_as_there(kind: str, saved: list[str], tmp_path):
    body = anatomy(build(kind))
    paths = [body.find(role)[0].path for role in saved]
    want = saved_by_peft(kind, tmp_path, modules_to_save=paths)
    net = build(kind)
    read(anatomy(net), tmp_path)
    torch.testing.assert_close(logits(net), want, rtol=0, atol=1e-5)


def test_the_folder_is_pefts():
    """Key by key against what peft itself writes."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saved_by_peft("llama", folder / "theirs", r=8, lora_alpha=16)
        attach(anatomy(build("llama")), made("lora", {})).save(folder / "ours")
        theirs, ours = (json.loads((folder / who / "adapter_config.json").read_text()) for who in ("theirs", "ours"))
        assert set(ours) == set(theirs)
        told = {key for key in theirs if ours[key] != theirs[key]}
        assert told <= {"target_modules", "base_model_name_or_path", "task_type", "auto_mapping"} and set(ours["target_modules"]) == set(
            theirs["target_modules"]
        )
        shapes = [
            {key: value.shape for key, value in load_file(folder / who / "adapter_model.safetensors").items()} for who in ("theirs", "ours")
        ]
        assert shapes[0] == shapes[1]


def refused(kind: str, folder: Path, *words: str) -> None:
    net = build(kind)
    with pytest.raises(ValueError) as error:
        read(anatomy(net), folder)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)
    torch.testing.assert_close(logits(net), logits(build(kind)))
    assert not anatomy(net).adapters


def test_an_adapter_for_another_model_is_refused_in_a_sentence(tmp_path):
    saved_by_peft("llama", tmp_path)
    refused("gpt2", tmp_path, "is for another model", "model.layers.0.self_attn.q_proj")


def test_an_adapter_for_another_width_is_refused_with_both_shapes(tmp_path):
    saved_by_peft("llama", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    wide = {key: torch.zeros(4, 64) if "lora_A" in key else value for key, value in tensors.items()}
    save_file(wide, tmp_path / "adapter_model.safetensors")
    refused("llama", tmp_path, "another model", "(4, 64)", "(4, 32)")


def test_missing_and_unexpected_tensors_are_all_listed(tmp_path):
    saved_by_peft("llama", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    first, second, *_ = sorted(tensors)
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = tensors.pop(first)
    del tensors[second]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    refused("llama", tmp_path, "missing", "unexpected", "layers.7", "layers.0")


@pytest.mark.parametrize("key, value", [("bias", "all"), ("lora_bias", True), ("a_new_idea", 3), ("layer_replication", [[0, 1]])])
def test_a_setting_that_would_change_the_result_is_refused(key: str, value: object, tmp_path):
    saved_by_peft("llama", tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refused("llama", tmp_path, key)


def test_another_kind_of_adapter_is_refused(tmp_path):
    saved_by_peft("llama", tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "LOHA"}))
    refused("llama", tmp_path, "LOHA")


def test_a_pickle_is_refused(tmp_path):
    saved_by_peft("llama", tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="pickle"):
        read(anatomy(build("llama")), tmp_path)


def test_a_value_that_is_no_number_and_a_missing_file_are_named(tmp_path):
    saved_by_peft("llama", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    first = min(tensors)
    save_file(tensors | {first: torch.full_like(tensors[first], float("nan"))}, tmp_path / "adapter_model.safetensors")
    refused("llama", tmp_path, first, "holds NaN or infinity")
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no adapter_config.json; an adapter is a folder with"):
        read(anatomy(build("llama")), tmp_path)
