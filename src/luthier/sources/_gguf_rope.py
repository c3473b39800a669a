"""How a GGUF file scales its rotary positions, as config.json says it: by metadata, or by a tensor with a divisor for each pair.

LLaMA 3.1 and later are written with such a tensor: llama.cpp divides each pair's rate by its factor, which is what LongRoPE does too
(core/scaling.py), with one set of divisors for all lengths.
"""

import math
import struct
from typing import Any

from luthier.sources._gguf_header import Header

FACTORS = "rope_freqs.weight"


def read_rope(header: Header, arch: str, turned: int) -> dict[str, Any]:
    """The keys of rope_parameters but for the base; turned: dimensions of a head that turn."""
    read = read_scaling(header, arch)
    if FACTORS not in header.tensors:
        return read
    if read["rope_type"] != "default":
        raise ValueError(
            f"{header.path}: it scales its rotary positions twice ({read['rope_type']} and {FACTORS}), which Luthier does not read"
        )
    factors = read_factors(header, turned)
    trained = header.metadata.get(f"{arch}.context_length")
    same = {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0, "factor": 1.0}
    return {"rope_type": "longrope", "original_max_position_embeddings": trained, **same}


def read_factors(header: Header, turned: int) -> list[float]:
    """The divisor of each pair's rate, turned / 2 of them."""
    stored = header.tensors[FACTORS]
    if stored.kind != "F32" or stored.shape != (turned // 2,):
        shape = f"{stored.kind} of shape {stored.shape}"
        raise ValueError(f"{header.path}: tensor {FACTORS!r} is {shape}, not F32 of shape {(turned // 2,)}; the file is damaged")
    factors = list(struct.unpack_from(f"<{turned // 2}f", header.data, stored.start))
    if any(not math.isfinite(factor) or factor <= 0 for factor in factors):
        raise ValueError(
            f"{header.path}: tensor {FACTORS!r} holds {min(factors)} to {max(factors)}, and divisors are above 0; the file is damaged"
        )
    return factors


def read_scaling(header: Header, arch: str) -> dict[str, Any]:
    """llama.cpp's keys for scaled rotary positions as those of config.json. Its YaRN is transformers' with the ramp's ends rounded.

    llama.cpp multiplies YaRN's own sharpness, 0.1 ln(factor) + 1, by attn_factor.
    """
    top, known = f"{arch}.rope.scaling.", {"type", "factor", "original_context_length", "attn_factor", "finetuned"}
    found = {key.removeprefix(top): value for key, value in header.metadata.items() if key.startswith(top)}
    kind, factor = found.get("type", "none"), found.get("factor", header.metadata.get(f"{arch}.rope.scale_linear", 1.0))
    if kind == "none" and factor != 1.0:
        kind = "linear"  # of files from before there were other kinds
    if kind == "none":
        return {"rope_type": "default"}
    yarn = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"} if kind == "yarn" else {}
    ignored = {
        key for key, value in found.items() if key in ("yarn_ext_factor", "yarn_attn_factor") and kind == "yarn" and value in (1, -1)
    }
    if kind not in ("linear", "yarn") or (strange := sorted(found.keys() - known - yarn.keys() - ignored)):
        what = kind if kind not in ("linear", "yarn") else f"{kind}, with {', '.join(strange)}"
        raise ValueError(f"{header.path}: it scales its rotary positions ({what}), which Luthier does not read; linear and yarn it does")
    if not isinstance(factor, int | float) or factor <= 0:
        raise ValueError(f"{header.path}: its metadata says {top}factor = {factor!r}; the file is damaged")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    trained = found.get("original_context_length", header.metadata.get(f"{arch}.context_length"))
    sharpness = found.get("attn_factor", 1.0) * (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    read = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained, "attention_factor": sharpness}
    return read | {ours: found[theirs] for theirs, ours in yarn.items() if theirs in found}
