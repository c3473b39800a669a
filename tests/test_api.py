"""Luthier from Python: names arrive when they are used, and calls reach the parts."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import luthier
from stored import saved, tiny
from tiny import tiny_chat


def test_importing_luthier_imports_nothing():
    code = (
        "import sys, luthier; assert not {'torch', 'luthier.api', 'yaml'} & set(sys.modules); luthier.load; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'luthier' has no attribute 'laod'"):
        luthier.laod  # noqa: B018


@torch.no_grad()
def test_load_tune_save_and_load_again(tmp_path: Path):
    base = saved(tiny("llama"), tmp_path / "base")
    model = luthier.load(base, dtype="float64")
    ids = torch.arange(20)[None]
    assert model.logits(ids).dtype == torch.float64
    attached = luthier.tune(model, "lora", rank=2)
    for parameter in attached.parameters.values():
        parameter.normal_()
    wanted = model.logits(ids)
    model.save_adapter(tmp_path / "adapter")
    assert torch.allclose(luthier.load(base, adapter=tmp_path / "adapter", dtype="float64").logits(ids), wanted)
    assert torch.allclose(luthier.load(tmp_path / "adapter", dtype=torch.float64).logits(ids), wanted)
    with pytest.raises(FileNotFoundError, match="no such folder; an adapter is a folder with adapter_config.json"):
        luthier.load(base, adapter=tmp_path / "nowhere")


def test_what_a_model_cannot_do_is_said(tmp_path: Path):
    model = luthier.load(saved(tiny("llama"), tmp_path / "base"))
    for act in (model.merge, lambda: model.save_adapter(tmp_path / "out")):
        with pytest.raises(ValueError, match=r"has no adapter: tune it first \(luthier.tune\), or load it with adapter=FOLDER"):
            act()
    with pytest.raises(ValueError, match="decoder_ids are for encoder-decoder models"):
        model.logits(torch.arange(4)[None], decoder_ids=torch.arange(4)[None])
    with pytest.raises(ValueError, match="rnak"):
        luthier.tune(model, "lora", rnak=3)


def test_run_files_are_read(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("model: x\n")
    with pytest.raises(ValueError, match=r"run.yaml"):
        luthier.Run.from_yaml(tmp_path / "run.yaml", ["training.raet=1"])


@pytest.mark.parametrize(
    "ids, words",
    [
        (torch.tensor([1, 2]), r"ids must be \(batch, time\), not \(2,\); of one text: ids\[None\]"),
        (torch.tensor([[1, 10_000]]), "ids must be 0 to .*, and 10000 is among them"),
        (torch.tensor([[-1, 2]]), "-1 is among them"),
        (torch.tensor([[1.0]]), "ids must be whole numbers"),
    ],
)
def test_ids_that_cannot_be_are_told(ids: torch.Tensor, words: str):
    with pytest.raises(ValueError, match=words):
        tiny_chat().logits(ids)
