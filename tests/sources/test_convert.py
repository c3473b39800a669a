"""Pickles become safetensors in a child process, weights only; anything else in them is refused and not run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.sources.convert import child, convert_pickles
from luthier.sources.load import load_model
from stored import tiny


def pickled(folder: Path, kind: str = "llama", **options: Any) -> Path:
    model = tiny(kind)
    folder.mkdir()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin", **options)
    (folder / "vocab.txt").write_text("a\n")
    return folder


@pytest.mark.parametrize("kind, old", [("qwen2", False), ("bert", True)])  # tied: the same matrix stands in the pickle twice
def test_a_pickle_becomes_the_same_model(kind: str, old: bool, tmp_path: Path):
    folder = pickled(tmp_path / "in", kind, _use_new_zipfile_serialization=not old)
    convert_pickles(folder, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors", "vocab.txt"}
    (tmp_path / "out" / "vocab.txt").unlink()
    model, row = load_model(tmp_path / "out"), torch.arange(20)[None]
    assert torch.allclose(model.logits(row), tiny(kind)(row).logits, atol=1e-5)


def test_shards_of_pickles_become_shards(tmp_path: Path):
    folder = pickled(tmp_path / "in")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    halves = {"pytorch_model-1.bin": dict(list(state.items())[:9]), "pytorch_model-2.bin": dict(list(state.items())[9:])}
    for name, part in halves.items():
        torch.save(part, folder / name)
    index = {"weight_map": {tensor: name for name, part in halves.items() for tensor in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    convert_pickles(folder, tmp_path / "out")
    (tmp_path / "out" / "vocab.txt").unlink()
    assert torch.allclose(
        load_model(tmp_path / "out").logits(torch.arange(9)[None]), tiny("llama")(torch.arange(9)[None]).logits, atol=1e-5
    )


def test_weights_under_a_training_script_s_key_are_found(tmp_path: Path):
    folder = pickled(tmp_path / "in")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({"epoch": 3, "state_dict": state}, folder / "pytorch_model.bin")
    convert_pickles(folder / "pytorch_model.bin", tmp_path / "out")
    (tmp_path / "out" / "vocab.txt").unlink()
    assert load_model(tmp_path / "out").net.width == 64


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["LUTHIER_TEST_EVIL"],)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LUTHIER_TEST_EVIL", str(tmp_path / "ran"))
    folder = pickled(tmp_path / "in")
    torch.save({"a": torch.ones(2), "b": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin: it holds more than weights"):
        convert_pickles(folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02}q\x00."])
def test_a_file_without_weights_is_said(content: bytes, tmp_path: Path):
    (tmp_path / "m.pt").write_bytes(content)
    told = child(str(tmp_path / "m.pt"), str(tmp_path / "out"))
    assert told is not None
    assert told.startswith(("it is damaged", "it holds more than weights", "no weights in it"))


def test_nothing_to_convert_is_said(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no pickle here"):
        convert_pickles(tmp_path, tmp_path / "out")
    folder = pickled(tmp_path / "in")
    with pytest.raises(ValueError, match="is where the pickles are"):
        convert_pickles(folder, folder)
