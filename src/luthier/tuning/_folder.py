"""The files of one adapter's folder."""

import json
from pathlib import Path
from typing import Any

from luthier import lookup
from luthier.sources.convert import ADAPTERS
from luthier.sources.directory import read_json
from luthier.sources.load import finite
from luthier.sources.tensor_files import Safetensors, read_header

CONFIG, WEIGHTS, STATE = "adapter_config.json", "adapter_model.safetensors", "luthier_state.safetensors"
PREFIX = "base_model.model."
HEADS = {"SEQ_CLS": "classify", "TOKEN_CLS": "tag", "QUESTION_ANS": "spans"}  # peft's task_type: our head
PEFT = ("lora", "ia3", "adalora", "prefix", "p_tuning_v2", "prompt", "p_tuning")  # methods whose files are peft's
TABLE = "prompt_embeddings"  # the tensor of every prompt and prefix, which stands under no module
TYPES = {"prefix_tuning": "p_tuning_v2", "prompt_tuning": "prompt"}  # peft's other names of methods
DELTA = ".token_adapter.trainable_tokens_delta"
LIBRARY_WEIGHTS, LIBRARY_FUSION = "adapter.safetensors", "adapter_fusion_config.json"  # of the library adapters
FUSION_WEIGHTS = "model_adapter_fusion.safetensors"
LIBRARY_HEAD, HEAD_WEIGHTS = "head_config.json", "model_head.safetensors"
# Heads of that library that are read: its name, our head, and what its settings must be for them to be the same function.
LIBRARY_HEADS = {
    "classification": ("classify", {"layers": 2, "activation_function": "tanh", "use_pooler": False, "bias": True}),
    "tagging": ("tag", {"layers": 1}),
    "question_answering": ("spans", {"layers": 1, "num_labels": 2}),
}
NUMBER, NAMES = (int, float), (str, list)
# Of peft's settings what they must be, and for which of its types they must be there.
SETTINGS: dict[str, tuple[type | tuple[type, ...], str, tuple[str, ...]]] = {
    "r": (int, "a whole number", ("LORA",)),
    "init_r": (int, "a whole number", ("ADALORA",)),
    "target_r": (int, "a whole number", ("ADALORA",)),
    "lora_alpha": (NUMBER, "a number", ("LORA", "ADALORA")),
    "lora_dropout": (NUMBER, "a number", ()),
    "target_modules": (NAMES, "a list of names or a pattern", ()),
    "exclude_modules": (NAMES, "a list of names or a pattern", ()),
    "modules_to_save": (list, "a list of names", ()),
    "layers_to_transform": ((int, list), "a list of layers", ()),
    "rank_pattern": (dict, "a table", ()),
    "alpha_pattern": (dict, "a table", ()),
    "num_virtual_tokens": (int, "a whole number", ("PREFIX_TUNING", "PROMPT_TUNING")),
    "num_layers": (int, "a whole number", ("PREFIX_TUNING",)),
    "luthier": (dict, "the settings of a method", ()),
}


def checked(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """An adapter_config.json as it is. ValueError with everything that is missing or of another kind."""
    wrong = [
        f"{key} is missing" for key, (_, _, needed) in SETTINGS.items() if config.get("peft_type") in needed and config.get(key) is None
    ]
    wrong += [
        f"{key} must be {words}, not {json.dumps(config[key])}"
        for key, (kinds, words, _) in SETTINGS.items()
        if config.get(key) is not None and (not isinstance(config[key], kinds) or isinstance(config[key], bool))
    ]
    if "luthier" in config and config["luthier"] is None:
        wrong.append("luthier must be the settings of a method, not null")
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}. Save the adapter anew, or take its {path.name} from where it was made")
    return config


class Folder:
    """The files of one adapter: its configuration, its tensors without peft's prefix, and what Luthier noted beside them."""

    def __init__(self, path: Path):
        self.path = path
        fusion = (path / LIBRARY_FUSION).is_file() and not (path / CONFIG).is_file()
        if not fusion and not (path / CONFIG).is_file():
            raise FileNotFoundError(f"{path}: no {CONFIG}; an adapter is a folder with {CONFIG} and {WEIGHTS}")
        file = path / (LIBRARY_FUSION if fusion else CONFIG)
        self.config = checked(read_json(file), file)
        self.library = "peft_type" not in self.config and isinstance(self.config.get("config"), dict)
        weights = [FUSION_WEIGHTS if fusion else LIBRARY_WEIGHTS if self.library else WEIGHTS]
        self.head = read_json(path / LIBRARY_HEAD) if self.library and (path / LIBRARY_HEAD).is_file() else {}
        weights += [HEAD_WEIGHTS] if self.head else []
        for file in weights:
            if not (path / file).is_file():
                pickle = next((name for name, made in ADAPTERS.items() if made == file and (path / name).is_file()), None)
                other = f" ({pickle} is a pickle, which is never loaded; `luthier convert {path} OUT` makes safetensors of it)"
                raise FileNotFoundError(f"{path}: no {file}{other if pickle else ''}")
        stored = Safetensors([path / file for file in weights])
        read = {name: finite(stored.read(name), name, str(path)) for name in stored.specs}
        self.tensors = {name.removeprefix(PREFIX).removeprefix("base_model."): value for name, value in read.items()}
        note = read_header(path / STATE)[1] if (path / STATE).is_file() else {}
        beside = Safetensors([path / STATE]) if (path / STATE).is_file() else None
        self.state = {name: beside.read(name) for name in beside.specs} if beside else {}
        self.fused: dict[str, list[int]] = json.loads(note.get("fused", "{}"))
        self.filled: list[str] = json.loads(note.get("filled", "[]"))  # written because peft's format stores modules whole
        self.scales: dict[str, list[float]] = json.loads(note.get("scales", "{}"))  # those that the terms of a fused module train with
        self.method: dict[str, Any] = json.loads(note.get("method", "{}"))
        self.tokens: list[str] = json.loads(note.get("tokens", "[]"))
        self.heads: dict[str, int] = json.loads(note["heads"]) if "heads" in note else self._heads()

    def _heads(self) -> dict[str, int]:
        """The task heads that an adapter of peft's or of the library brings, and their labels."""
        if self.head:
            return self._library_head()
        kind = HEADS.get(str(self.config.get("task_type")))
        rows = [len(value) for name, value in self.tensors.items() if name in ("classifier.weight", "score.weight", "qa_outputs.weight")]
        return {kind: rows[0]} if kind and rows else {}

    def _library_head(self) -> dict[str, int]:
        settings = self.head.get("config") or {}
        kind, wanted = LIBRARY_HEADS.get(str(settings.get("head_type")), ("", {}))
        other = {key: settings.get(key) for key, value in wanted.items() if settings.get(key) != value}
        if not kind or other or not isinstance(settings.get("num_labels"), int):
            what = ", ".join(f"{key}={value!r}" for key, value in (other or {"head_type": settings.get("head_type")}).items())
            raise ValueError(
                f"{self.path / LIBRARY_HEAD}: a head of the library adapters that is not read here ({what}); to load the adapter alone, "
                "take the head's two files out of the folder"
            )
        return {kind: settings["num_labels"]}

    @property
    def kind(self) -> str:
        """Which plug-in of this shelf it is."""
        if self.library:  # its settings say it
            return "adapter"
        name = str(self.config.get("peft_type", "")).lower()
        name = TYPES.get(name, name)
        if name not in lookup.names("tuning") or (name not in PEFT and "luthier" not in self.config):
            raise ValueError(f"{self.path / CONFIG}: an adapter of type {self.config.get('peft_type')!r}, which is not read here")
        return name
