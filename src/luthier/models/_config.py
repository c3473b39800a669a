"""Reading a config.json: what is missing is named, what we do not have is refused by name rather than run wrongly."""

from dataclasses import fields
from typing import Any

ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu", "silu": "silu",
    "swish": "silu", "tanh": "tanh",
}  # fmt: skip
STORED = {"gelu_tanh": "gelu_new"}  # ours to theirs, where they differ
SIZES = (
    "vocab", "width", "embed_width", "layers", "heads", "hidden", "positions", "segments", "image", "patch", "channels", "groups", "inner",
    "head_width",
)  # fmt: skip
MISSING = object()


def check_heads(width: int, heads: int, kv_heads: int = 0, head_width: int = 0, rotary: bool = False) -> None:
    """Refuse sizes that no attention fits. kv_heads 0: as many as heads; head_width 0: width / heads."""
    if not all(isinstance(size, int) for size in (width, heads, kv_heads, head_width)) or heads < 1:
        return  # of another type or none at all: told where the fields are read
    if not head_width and width % heads:
        raise ValueError(f"width={width} must divide by heads={heads}")
    if kv_heads and heads % kv_heads:
        raise ValueError(f"heads={heads} must divide by kv_heads={kv_heads}: groups of query heads share a key-value head")
    if rotary and (head_width or width // heads) % 2:
        raise ValueError(
            f"a head of {head_width or width // heads} dimensions is odd, and rotary positions turn pairs; change width or heads"
        )


def check_fields(arch: Any) -> None:
    """Refuse values that no architecture can have, by the names that all of them share."""
    for field in fields(arch):
        name, value = field.name, getattr(arch, field.name)
        least = int(name in SIZES and field.default != 0)  # a default of 0 has a meaning: GPT-2's hidden
        if isinstance(value, int) and not isinstance(value, bool) and value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
        if name.endswith("dropout") and not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be at least 0 and below 1: it is the share that is left out")
        if name in ("eps", "theta") and not value > 0:
            raise ValueError(f"{name}={value} must be above 0")
        if name == "act" and value not in ACTIVATIONS.values():
            raise ValueError(f"act={value!r} is not here; there are {', '.join(sorted(set(ACTIVATIONS.values())))}")
    if not hasattr(arch, "kind"):
        return
    kinds = {*arch.types, *(preset["kind"] for preset in arch.presets.values() if "kind" in preset)}
    if arch.kind not in kinds:
        raise ValueError(f"kind={arch.kind!r} is not here; there are {', '.join(sorted(kinds))}")


def check_even(width: int) -> None:
    """Refuse a width that sinusoids do not fit."""
    if isinstance(width, int) and width % 2:
        raise ValueError(f"width={width} is odd, and sinusoids come in pairs of sine and cosine; make it even")


class Reader:
    """read(key) is the value, read(key, default) the value or the default; a key without a default must be there."""

    def __init__(self, config: dict[str, Any]):
        self.config = config

    def __call__(self, key: str, default: Any = MISSING) -> Any:
        value = self.config.get(key, default)
        if value is MISSING:
            raise ValueError(
                f"config.json of a {self.config.get('model_type')} model lacks {key!r}; take the file that came with the weights"
            )
        return value

    def activation(self, key: str, default: str) -> str:
        name = self(key, default)
        if name not in ACTIVATIONS:
            raise ValueError(f"config.json asks for {key}={name!r}, which is not here; there are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def rope_theta(self) -> float:
        """The base of rotary positions, from either generation of config.json."""
        rope = self("rope_parameters", None) or self("rope_scaling", None) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", None):
            raise ValueError(f"config.json asks for rotary scaling {kind!r}, which is not here yet; only unscaled rotary positions are")
        return float(rope.get("rope_theta", self("rope_theta", 10_000.0)))
