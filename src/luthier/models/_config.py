"""Reading a config.json: what is missing is named, what we do not have is refused by name rather than run wrongly."""

from typing import Any

ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu", "silu": "silu",
    "swish": "silu", "tanh": "tanh",
}  # fmt: skip
STORED = {"gelu_tanh": "gelu_new"}  # ours to theirs, where they differ
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
