"""Small pictures with captions, and tiny models that look at them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}
SHAPES = ("square", "bar", "dot")
SIDE = 16
SEES = {
    "width": 24, "layers": 2, "heads": 2, "hidden": 32, "image": SIDE, "patch": 4, "eps": 1e-6, "pooler": False, "kind": "blip_2_vision_model",
}  # fmt: skip
ASKS = {"width": 32, "layers": 3, "heads": 4, "hidden": 48, "positions": 50, "queries": 5, "dropout": 0.0, "attention_dropout": 0.0}


def captioned(folder: Path, count: int = 12) -> list[dict[str, Any]]:
    """Rows {image, caption}; the pictures are written beside the file that the rows will be in."""
    image = pytest.importorskip("PIL.Image")
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        colour, shape = list(COLOURS)[i % 4], SHAPES[i // 4 % 3]
        picture = image.new("RGB", (SIDE, SIDE), "white")
        wide, high = {"square": (10, 10), "bar": (14, 4), "dot": (4, 4)}[shape]
        picture.paste(COLOURS[colour], (1, 1, 1 + wide, 1 + high))
        picture.save(folder / "pictures" / f"{i}.png")
        rows.append({"image": f"pictures/{i}.png", "caption": f"{colour} {shape}"})
    return rows


def conversations(folder: Path, count: int = 12) -> list[dict[str, Any]]:
    """Rows {image, messages} on the same pictures."""
    return [
        {"image": row["image"], "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": row["caption"]}]}
        for row in captioned(folder, count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_eyes(tokenizer: Any, **settings: Any) -> Any:
    """A BLIP-2 with random weights that reach every parameter."""
    from luthier.models.blip2 import BLIP2
    from luthier.sources.model import Model

    torch.manual_seed(0)
    asks = {**ASKS, "vocab": tokenizer.vocab, "text": True, "memory": SEES["width"]}
    net = BLIP2(**{"vision": SEES, "q_former": asks, "shared": 16, **settings}).build().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name != "logit_scale":
                parameter.copy_(torch.randn(parameter.shape) * 0.2 + (1.0 if name.endswith("norm.weight") else 0.0))
    return Model(net, tokenizer, source="a tiny blip2")


def tiny_seer(**sizes: int) -> Any:
    """A MiniGPT-4 over bytes with random weights: five tokens for each picture."""
    from luthier.models.minigpt4 import MiniGPT4
    from luthier.sources.model import Model
    from tiny import tiny_chat

    voice = tiny_chat()
    llama = {"vocab": 258, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "hidden": 24, "positions": 512, **sizes}
    torch.manual_seed(1)
    net = MiniGPT4(vision=SEES, q_former={**ASKS, "memory": SEES["width"]}, language=llama).build().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Model(net, voice.tokenizer, voice.template, source="a tiny minigpt4")
