"""A whole run that takes a second: a fresh two-layer llama over bytes, forty short conversations, LoRA."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import yaml
from tokenizers import decoders, models, pre_tokenizers

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["lute", "viol", "harp", "drum", "tune", "peg", "fret", "bow"]


def write_tokenizer(folder: Path) -> Path:
    """One token for each byte, chat marks, chat template; as a folder in Hugging Face's form."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    folder.mkdir(parents=True, exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chats(count: int = 40) -> list[dict[str, Any]]:
    source = random.Random(1)
    asked = [source.choices(WORDS, k=source.randrange(1, 4)) for _ in range(count)]
    return [
        {"messages": [{"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": " ".join(reversed(words))}]}
        for words in asked
    ]


def values(folder: Path, **changes: Any) -> dict[str, Any]:
    """The sections of a run in `folder`; changes are merged into them section by section."""
    tokenizer, data = folder / "tokenizer", folder / "train.jsonl"
    if not tokenizer.exists():
        write_tokenizer(tokenizer)
    if not data.exists():
        write_rows(data, chats())
    tiny = {"arch": "llama", "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 24, "positions": 256, "tied": True}
    sections: dict[str, Any] = {
        "model": {**tiny, "tokenizer": str(tokenizer)},
        "data": {"path": str(data), "length": 128, "held_out": 6},
        "objective": {"kind": "chat"},
        "tuning": {"kind": "lora", "roles": ["q", "v", "up"], "rank": 2, "dropout": 0.1},
        "training": {"steps": 6, "rows": 4, "micro_tokens": 100, "rate": 0.01},
        "output": str(folder / "out"),
    }
    for key, change in changes.items():
        old = sections.get(key)
        sections[key] = {**old, **change} if isinstance(old, Mapping) and isinstance(change, Mapping) else change
    return sections


def write_run(folder: Path, **changes: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values(folder, **changes)))
    return path
