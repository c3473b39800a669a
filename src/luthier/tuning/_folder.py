"""The files of one adapter's folder."""

import json
from pathlib import Path
from typing import Any

from luthier import lookup
from luthier.sources.directory import read_json
from luthier.sources.tensor_files import Safetensors, read_header

CONFIG, WEIGHTS, STATE = "adapter_config.json", "adapter_model.safetensors", "luthier_state.safetensors"
PREFIX = "base_model.model."
HEADS = {"SEQ_CLS": "classify", "TOKEN_CLS": "tag", "QUESTION_ANS": "spans"}  # peft's task_type: our head
PEFT = ("lora", "ia3", "adalora", "prefix", "p_tuning_v2", "prompt", "p_tuning")  # methods whose files are peft's
TABLE = "prompt_embeddings"  # the tensor of every prompt and prefix, which stands under no module
TYPES = {"prefix_tuning": "p_tuning_v2", "prompt_tuning": "prompt"}  # peft's other names of methods
DELTA = ".token_adapter.trainable_tokens_delta"


class Folder:
    """The files of one adapter: its configuration, its tensors without peft's prefix, and what Luthier noted beside them."""

    def __init__(self, path: Path):
        self.path = path
        self.config = read_json(path / CONFIG)
        if not (path / WEIGHTS).is_file():
            other = " (adapter_model.bin is a pickle, which is never loaded; save it again with peft as safetensors)"
            raise FileNotFoundError(f"{path}: no {WEIGHTS}{other if (path / 'adapter_model.bin').exists() else ''}")
        stored = Safetensors([path / WEIGHTS])
        self.tensors = {name.removeprefix(PREFIX).removeprefix("base_model."): stored.read(name) for name in stored.specs}
        note = read_header(path / STATE)[1] if (path / STATE).is_file() else {}
        beside = Safetensors([path / STATE]) if (path / STATE).is_file() else None
        self.state = {name: beside.read(name) for name in beside.specs} if beside else {}
        self.fused: dict[str, list[int]] = json.loads(note.get("fused", "{}"))
        self.method: dict[str, Any] = json.loads(note.get("method", "{}"))
        self.tokens: list[str] = json.loads(note.get("tokens", "[]"))
        self.heads: dict[str, int] = json.loads(note["heads"]) if "heads" in note else self._heads()

    def _heads(self) -> dict[str, int]:
        """The task heads that an adapter of peft's brings, and their labels."""
        kind = HEADS.get(str(self.config.get("task_type")))
        rows = [len(value) for name, value in self.tensors.items() if name in ("classifier.weight", "score.weight", "qa_outputs.weight")]
        return {kind: rows[0]} if kind and rows else {}

    @property
    def kind(self) -> str:
        """Which plug-in of this shelf it is."""
        name = str(self.config.get("peft_type", "")).lower()
        name = TYPES.get(name, name)
        if name not in lookup.names("tuning") or (name not in PEFT and "luthier" not in self.config):
            raise ValueError(f"{self.path / CONFIG}: an adapter of type {self.config.get('peft_type')!r}, which is not read here")
        return name
