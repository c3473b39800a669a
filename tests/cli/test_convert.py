"""luthier convert: pickles and GGUF files become folders of safetensors that transformers reads."""

from pathlib import Path

import torch
import transformers
from tokenizers import pre_tokenizers
from typer.testing import CliRunner

from luthier.cli.main import app
from luthier.sources.load import load_model
from stored import add_byte_bpe, byte_bpe, tiny, write_gguf


def convert(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["convert", *map(str, words)])
    return result.exit_code, result.output


def test_a_pickle_folder_is_converted_with_the_command_its_refusal_names(tmp_path: Path):
    model = tiny("llama")
    model.config.save_pretrained(tmp_path / "in")
    torch.save(model.state_dict(), tmp_path / "in" / "pytorch_model.bin")
    refused = CliRunner().invoke(app, ["inspect", str(tmp_path / "in")])
    assert refused.exit_code == 2
    assert f"luthier convert {tmp_path / 'in'} in-safetensors" in refused.output.replace("\n", "")
    assert convert(tmp_path / "in", tmp_path / "out")[0] == 0
    assert load_model(tmp_path / "out").net.width == 64


@torch.no_grad()
def test_a_gguf_file_becomes_a_folder_that_transformers_reads(tmp_path: Path):
    trained = byte_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    path = write_gguf(tmp_path / "m.gguf", tiny("llama"), "llama", tokenizer=lambda writer: add_byte_bpe(writer, trained, "gpt-2"))
    assert convert(path, tmp_path / "out")[0] == 0
    row = torch.arange(30)[None]
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.allclose(back(row).logits, tiny("llama")(row).logits, atol=1e-5)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("it's  12")["input_ids"] == trained.encode("it's  12").ids


def test_what_is_neither_is_said(tmp_path: Path):
    (tmp_path / "a.onnx").write_bytes(b"")
    code, said = convert(tmp_path / "a.onnx", tmp_path / "out")
    assert code == 2
    assert "neither a pickle (.bin, .pt, .pth, .ckpt) nor a .gguf file" in said.replace("\n", " ")
