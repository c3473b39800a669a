"""luthier export: the adapter alone, or the whole model with it folded in; transformers and peft read both."""

from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

from luthier.cli.main import app
from luthier.sources.load import load_model
from luthier.tuning._tune import tune
from stored import saved, tiny


@pytest.fixture
def tuned(tmp_path: Path) -> tuple[Path, Path]:
    """(base, adapter) folders."""
    model = load_model(saved(tiny("llama"), tmp_path / "base"))
    attached = tune(model, "lora", rank=2)
    for parameter in attached.parameters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_adapter(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter"


def export(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *map(str, words)])
    return result.exit_code, result.output


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers in the old way
def test_a_merged_model_is_the_base_with_its_adapter(tuned: tuple[Path, Path], tmp_path: Path):
    peft = pytest.importorskip("peft")
    base, adapter = tuned
    code, said = export(base, tmp_path / "out", "--adapter", adapter, "--merge")
    assert code == 0, said
    assert "the largest difference of a logit is" in said
    row = torch.arange(3, 30)[None]
    wanted = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter).eval()(row).logits
    given = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(row).logits
    assert torch.allclose(given, wanted, atol=1e-4)


def test_an_adapter_goes_through_unchanged(tuned: tuple[Path, Path], tmp_path: Path):
    from safetensors.torch import load_file

    base, adapter = tuned
    code, said = export(base, tmp_path / "out", "--adapter", adapter)
    assert code == 0, said
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_is_written_in_another_type(tuned: tuple[Path, Path], tmp_path: Path):
    assert export(tuned[0], tmp_path / "out", "--dtype", "bfloat16")[0] == 0
    assert load_model(tmp_path / "out").dtype == torch.bfloat16


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--merge"], "has no adapter; name one with --adapter"),
        (["--to", "peft"], "has no adapter"),
        (["--to", "onnx"], "--to onnx: there are hf and peft"),
        (["--merge", "--to", "peft"], "leave one of them out"),
        (["--adapter", "nowhere"], "nowhere: no such folder; an adapter is a folder"),
    ],
)
def test_what_cannot_be_exported_is_said(words: list[str], sentence: str, tmp_path: Path):
    code, said = export(saved(tiny("llama"), tmp_path / "base"), tmp_path / "out", *words)
    assert code == 2
    assert sentence in said.replace("\n", " ")
    assert not (tmp_path / "out").exists()
