"""Rotary positions in config.json: rope_parameters (transformers 5), or rope_theta and rope_scaling (before it)."""

import math
from typing import Any

from luthier.core.scaling import DynamicNTK, Linear, Llama3, LongRoPE, Scaling, YaRN, mscale
from luthier.models._config import Reader

OLD = {"su": "longrope"}


def read_rope(read: Reader, positions: int) -> tuple[float, Scaling | None]:
    """The base and the scaling; `positions` is max_position_embeddings, the trained length where none is said. ValueError for other kinds."""
    new = read("rope_parameters", None) or {}
    rope = read("rope_scaling", None) or new
    theta = float(rope.get("rope_theta") or read("rope_theta", None) or new.get("rope_theta") or 10_000.0)
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    share = rope.get("partial_rotary_factor", read("partial_rotary_factor", None) or 1.0)
    if share != 1.0:
        raise ValueError(f"config.json asks for partial_rotary_factor={share}, which {read('model_type', 'llama')} here does not have")
    if kind == "default":
        return theta, None
    makers = {"linear": _linear, "dynamic": _dynamic, "yarn": _yarn, "llama3": _llama3, "longrope": _longrope}
    make = makers.get(OLD.get(kind, kind))
    if make is None:
        raise ValueError(f"config.json asks for rotary scaling {kind!r}, which is not here; there are {', '.join(makers)}")
    trained = int(read("original_max_position_embeddings", None) or rope.get("original_max_position_embeddings") or positions)
    try:
        return theta, make(rope, trained, positions)
    except KeyError as error:
        raise ValueError(f"config.json's rotary scaling {kind!r} lacks {error}; take the file that came with the weights") from None


def write_rope(theta: float, scaling: Scaling | None, positions: int) -> dict[str, Any]:
    """Both generations' keys."""
    if scaling is None:
        return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    match scaling:
        case Linear():
            rest: dict[str, Any] = {"factor": scaling.factor}
        case DynamicNTK():
            if scaling.trained != positions:
                raise ValueError(
                    f"config.json has one number for a dynamic scaling's trained={scaling.trained} and positions={positions}; make them equal"
                )
            rest = {"factor": scaling.factor}
        case YaRN():
            rest = {"factor": scaling.factor, "beta_fast": scaling.fast, "beta_slow": scaling.slow, "attention_factor": scaling.sharpness}
            rest |= {"truncate": scaling.whole, "original_max_position_embeddings": scaling.trained}
        case Llama3():
            rest = {"factor": scaling.factor, "low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
            rest |= {"original_max_position_embeddings": scaling.trained}
        case LongRoPE():
            rest = {"factor": positions / scaling.trained, "short_factor": list(scaling.short), "long_factor": list(scaling.long)}
            rest |= {"attention_factor": scaling.attention, "original_max_position_embeddings": scaling.trained}
    rest = {"rope_type": scaling.kind, **rest}
    return {"rope_theta": theta, "rope_scaling": rest, "rope_parameters": rest | {"rope_theta": theta}}


def _linear(rope: dict[str, Any], trained: int, positions: int) -> Linear:
    return Linear("linear", float(rope["factor"]))


def _dynamic(rope: dict[str, Any], trained: int, positions: int) -> DynamicNTK:
    return DynamicNTK("dynamic", float(rope["factor"]), positions)


def _yarn(rope: dict[str, Any], trained: int, positions: int) -> YaRN:
    factor = float(rope.get("factor") or positions / trained)
    attention = rope.get("attention_factor")
    if attention is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        attention = mscale(factor, rope["mscale"]) / mscale(factor, rope["mscale_all_dim"])
    fast, slow = rope.get("beta_fast") or 32.0, rope.get("beta_slow") or 1.0
    return YaRN("yarn", factor, trained, float(fast), float(slow), float(attention or 0.0), bool(rope.get("truncate", True)))


def _llama3(rope: dict[str, Any], trained: int, positions: int) -> Llama3:
    return Llama3("llama3", float(rope["factor"]), trained, float(rope["low_freq_factor"]), float(rope["high_freq_factor"]))


def _longrope(rope: dict[str, Any], trained: int, positions: int) -> LongRoPE:
    factor, attention = float(rope.get("factor") or positions / trained), rope.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    return LongRoPE("longrope", tuple(rope["short_factor"]), tuple(rope["long_factor"]), trained, float(attention))
