"""Saving: whole or not at all, in shards where it is big, adapters folded in, other files left alone."""

import builtins
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import luthier.sources.save as save_file
from luthier.sources.load import load_model
from luthier.sources.save import replace_folder, save_model
from luthier.tuning._tune import tune
from stored import saved, tiny


def ids() -> torch.Tensor:
    return torch.randint(0, 320, (2, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_big_models_come_in_shards_that_transformers_reads(llama_folder: Path, tmp_path: Path):
    model = load_model(llama_folder)
    save_model(model, tmp_path / "m", shard_bytes=100_000)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in model.net.parameters())
    assert set(index["weight_map"].values()) == {path.name for path in (tmp_path / "m").glob("model-*-of-*.safetensors")}
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert torch.equal(reference(ids()).logits, transformers.AutoModelForCausalLM.from_pretrained(llama_folder)(ids()).logits)
    assert torch.equal(load_model(tmp_path / "m").logits(ids()), model.logits(ids()))


def test_the_tokenizer_and_the_template_are_saved(llama_folder: Path, tmp_path: Path):
    model = load_model(llama_folder)
    model.save(tmp_path / "m")
    reference, before = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "m", llama_folder))
    talk = [{"role": "user", "content": "hi  12"}]
    assert reference.apply_chat_template(talk, tokenize=False) == before.apply_chat_template(talk, tokenize=False)
    assert reference("hi  12 <|im_end|>")["input_ids"] == before("hi  12 <|im_end|>")["input_ids"]
    assert reference.eos_token == before.eos_token
    again = load_model(tmp_path / "m")
    assert again.tokenizer is not None and model.tokenizer is not None
    assert again.tokenizer.fingerprint() == model.tokenizer.fingerprint()
    assert again.template is not None and model.template is not None
    assert again.template.source == model.template.source


@torch.no_grad()
def test_an_adapter_is_folded_in_and_the_model_goes_on_with_it(llama_folder: Path, tmp_path: Path):
    model = load_model(llama_folder, "float64")
    attached = tune(model, "lora", rank=2)
    for parameter in attached.parameters.values():
        parameter.normal_()
    wanted = model.logits(ids())
    model.save(tmp_path / "m")
    assert torch.equal(model.logits(ids()), wanted)
    assert (load_model(tmp_path / "m").logits(ids()) - wanted).abs().max() < 1e-12
    names = set(load_model(tmp_path / "m").net.state_dict())
    assert names == set(load_model(llama_folder).net.state_dict())
    assert model.merge() < 1e-12
    assert model.attached is None
    model.save(tmp_path / "merged")
    assert (load_model(tmp_path / "merged").logits(ids()) - wanted).abs().max() < 1e-12


def test_a_tied_matrix_that_an_adapter_changes_once_is_refused(tmp_path: Path):
    model = load_model(saved(tiny("qwen2"), tmp_path / "m"))
    attached = tune(model, "lora", rank=2, roles=("head",))
    torch.nn.init.normal_(next(iter(attached.parameters.values())))
    with pytest.raises(ValueError, match=r"is tied to .* save the adapter instead"):
        model.save(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


@pytest.mark.parametrize("place", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_full_disk_leaves_the_old_model_whole(place: str, llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = load_model(llama_folder)
    model.save(tmp_path / "m")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    fail_at(place, monkeypatch)
    with torch.no_grad():
        model.net.get_parameter("norm.weight").add_(1)
    with pytest.raises(OSError, match=r"could not be written \(No space left on device\); what was there before is untouched"):
        model.save(tmp_path / "m")
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def fail_at(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when a file of that name is opened for writing."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    opened, saved_json = Path.open, save_file.write_json

    def opening(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if "w" in mode and self.name == place:
            raise full
        return opened(self, mode, *args, **options)

    def writing(path: Path, value: Any) -> None:
        if path.name == place:
            raise full
        saved_json(path, value)

    def saving(self: Any, folder: Any) -> None:
        raise full

    monkeypatch.setattr(Path, "open", opening)
    monkeypatch.setattr(save_file, "write_json", writing)
    if place == "tokenizer.json":
        monkeypatch.setattr("luthier.data.tokenizer.Tokenizer.save", saving)


def test_no_room_is_said_before_anything_is_written(llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(OSError, match=r"the model needs .* and the disk has"):
        load_model(llama_folder).save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_files_of_others_stay_and_old_shards_go(llama_folder: Path, tmp_path: Path):
    model = load_model(llama_folder)
    save_model(model, tmp_path / "m", shard_bytes=100_000)
    (tmp_path / "m" / "notes.txt").write_text("mine")
    (tmp_path / "m" / "logs").mkdir()
    model.save(tmp_path / "m")
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "m" / "logs").is_dir()
    assert [path.name for path in (tmp_path / "m").glob("*.safetensors")] == ["model.safetensors"]
    assert not (tmp_path / "m" / "model.safetensors.index.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_model_may_be_saved_over_the_folder_it_came_from(llama_folder: Path, tmp_path: Path):
    load_model(llama_folder).save(tmp_path / "m")
    model = load_model(tmp_path / "m")  # its weights are views of the file that is now replaced
    wanted = model.logits(ids())
    model.save(tmp_path / "m")
    assert torch.equal(model.logits(ids()), wanted)
    assert torch.equal(load_model(tmp_path / "m").logits(ids()), wanted)


def test_a_call_that_fails_halfway_leaves_nothing(tmp_path: Path):
    def fill(place: Path) -> None:
        (place / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_folder(tmp_path / "m", fill)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is a file; name a folder"):
        replace_folder(tmp_path / "file", builtins.print)
