"""What a model is made of, without its weights: parts by role with their shapes and counts, memory in each type."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from luthier import lookup
from luthier.anatomy.anatomy import Anatomy, anatomy
from luthier.core.transformer import Transformer
from luthier.sources._match import labels_of, match
from luthier.sources._meta import on_meta
from luthier.sources.open import open_checkpoint
from luthier.sources.run_folder import resolve

ORDERS = {"PreNorm": "pre-norm", "PostNorm": "post-norm"}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def presets() -> dict[str, str]:
    """Preset name -> architecture."""
    return {preset: arch for arch in lookup.names("models") for preset in lookup.describe("models", arch).constants.get("presets", {})}


def describe(source: str) -> dict[str, Any]:
    """The anatomy of a source or of a preset, as JSON has it."""
    known = presets()
    if source in known or (source in lookup.names("models") and not Path(source).exists()):
        return describe_preset(source, known.get(source, source))
    if "://" not in source and "/" not in source and not Path(source).exists():
        raise ValueError(f"{source}: no such file, folder or preset{lookup.suggest(source, known)}")
    base, adapter = resolve(source)
    if isinstance(base, dict):
        raise ValueError(f"{source} is an adapter for a model with fresh weights; inspect a preset, one of {', '.join(sorted(known))}")
    checkpoint = open_checkpoint(base)
    found = {"source": source} | describe_net(match(checkpoint).net)
    kinds: dict[str, int] = {}
    for spec in checkpoint.tensors.specs.values():
        kinds[spec.kind] = kinds.get(spec.kind, 0) + spec.bytes
    tokenizer = checkpoint.tokenizer
    return found | {
        "stored_bytes": kinds,
        "tokenizer": None if tokenizer is None else {"vocab": tokenizer.vocab, "starts_with_bos": tokenizer.adds_bos, **tokenizer.named()},
        "chat_template": checkpoint.template is not None,
        "adapter": None if adapter is None else str(adapter),
    }


def describe_preset(source: str, arch: str) -> dict[str, Any]:
    kind: Any = lookup.lookup("models", arch)
    with on_meta():
        net = kind(**kind.presets.get(source, {})).build()
    return {"source": source} | describe_net(net)


def describe_net(net: Transformer) -> dict[str, Any]:
    body = anatomy(net)
    total = sum(parameter.numel() for parameter in net.parameters())
    return {
        "architecture": type(net.config).__module__.rpartition(".")[2],
        "config": dataclasses.asdict(net.config),
        "stacks": {name: describe_stack(body, name) for name in body.stacks},
        "around": around(body, net),
        "parameters": total,
        "memory_bytes": {dtype: total * size for dtype, size in BYTES.items()},
    }


def describe_stack(body: Anatomy, name: str) -> dict[str, Any]:
    """Blocks of a stack, and for each role the shape of one and the parameters of all."""
    roles = {}
    for role in body.stacks[name].parts:
        sites = body.find(f"{name}.{role}" if "." not in role else role)
        values = {id(value): value for site in sites for value in site.parameters.values()}  # a shared block counts once
        count = sum(value.numel() for value in values.values())
        roles[role] = {"shape": list(sites[0].weight.shape), "bias": sites[0].bias is not None, "parameters": count}
    blocks = body.stacks[name].blocks
    return {
        "blocks": len(blocks),
        "order": ORDERS.get(type(blocks[0]).__name__, "blocks of their own order"),
        "roles": roles,
        "parameters": sum(parameter.numel() for parameter in blocks.parameters()),
    }


def around(body: Anatomy, net: Transformer) -> dict[str, Any]:
    """What stands before and behind the blocks."""
    inside = {id(p) for stack in body.stacks.values() for p in stack.blocks.parameters()}
    embed = {id(p): p.numel() for p in net.embed.parameters()}
    words = body.embed.parameters.get("weight") if body.has("embed") else None  # an adaptive embedding has several tables
    parts: dict[str, Any] = {"embed": {"shape": [] if words is None else list(words.shape), "parameters": sum(embed.values())}}
    for kind, labels in labels_of(net).items():
        own = {id(p): p.numel() for p in net.heads[kind].parameters() if id(p) not in embed}
        parts[f"head {kind}"] = {"labels": labels, "parameters": sum(own.values()), "tied": kind == "lm" and body.tied}
        embed |= own
    rest = {id(p): math.prod(p.shape) for p in net.parameters() if id(p) not in embed and id(p) not in inside}
    return parts | ({"norm and pooler": {"parameters": sum(rest.values())}} if rest else {})
