"""Tiny transformers models with random weights, and our nets with the same weights."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.core.names import export_state, import_state

# Every file of families/ gives KINDS, and where it has them: ENCODERS (kinds that see both ways), HEADS (kind, head, labels, their
# class), SAVED (kind: (configuration, class) that read what we save, where these are others), MUTANTS (name: (changes of the
# architecture, change of the built net, kinds)), EXEMPT (general mutant: kinds without it) and DROPOUT (kind: their settings under which
# every place of dropout has a rate).
KINDS: dict[str, tuple[Any, Any, Any]] = {}
ENCODERS: list[str] = []
HEADS: list[tuple[str, str, int, Any]] = []
SAVED: dict[str, tuple[Any, Any]] = {}
MUTANTS: dict[str, tuple[Any, Any, Any]] = {}
EXEMPT: dict[str, list[str]] = {}
DROPOUT: dict[str, dict[str, float]] = {}
for file in sorted((Path(__file__).parent / "families").glob("*.py")):
    family = import_module(f"families.{file.stem}")
    KINDS |= getattr(family, "KINDS", {})
    ENCODERS += getattr(family, "ENCODERS", [])
    HEADS += getattr(family, "HEADS", [])
    SAVED |= getattr(family, "SAVED", {})
    assert not MUTANTS.keys() & getattr(family, "MUTANTS", {}).keys(), file
    MUTANTS |= getattr(family, "MUTANTS", {})
    DROPOUT |= getattr(family, "DROPOUT", {})
    for mutant, without in getattr(family, "EXEMPT", {}).items():
        EXEMPT.setdefault(mutant, []).extend(without)
DECODERS = [kind for kind in KINDS if kind not in ENCODERS]

# What is left in float64 at T=200 once their norms no longer cast to float32: rounding alone.
FLOOR = 1e-12


def reference(kind: str, heads: Any = None, **changes: Any) -> nn.Module:
    """Their model with random weights that reach every parameter, in the default dtype, in eval mode."""
    _, config, cls = KINDS[kind]
    config = type(config)(**(config.to_dict() | changes))
    config._attn_implementation = "sdpa" if (heads or cls)._supports_sdpa else "eager"
    model = (heads or cls)(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = 1.0 if p.dim() == 1 and "weight" in name else 0.0
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + centre)
    return model.eval()


def ours(kind: str, model: Any, heads: dict[str, int] | None = None, **changes: Any):
    """Our net with the weights of their model; `changes` alter the architecture (mutants)."""
    cls = KINDS[kind][0]
    arch = cls.from_config(model.config.to_dict())
    stored = {arch.aliases(name): tensor for name, tensor in model.state_dict().items() if arch.aliases(name)}
    arch = replace(arch.fit(set(stored)), **changes)
    net = arch.build()
    for head, labels in (heads or {}).items():
        net.add_head(head, labels)
    names = arch.names({"lm": 0} | (heads or {})) if "lm" in net.heads else arch.names(heads or {})
    net.load_state_dict(import_state(names, stored), strict=False)
    return net.eval()


def theirs(kind: str, net: Any, like: nn.Module) -> nn.Module:
    """Their model again, with the weights of our net written under their names."""
    saved = net.config.saved()
    written = export_state(saved.names(dict.fromkeys(net.heads, 0)), dict(net.state_dict()))
    config, cls = SAVED.get(kind, (type(like.config), type(like)))
    fresh = cls(config(**saved.to_config()))
    missing, unexpected = fresh.load_state_dict(written, strict=False)
    fresh.tie_weights()
    assert not unexpected and set(missing) <= set(cls._tied_weights_keys or {})
    return fresh.eval()


def sample(batch: int = 2, length: int = 200, seed: int = 0) -> Tensor:
    return torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(seed))


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the mean size of b."""
    return ((a - b).abs().max() / b.abs().mean()).item()


def dropped(monkeypatch: Any) -> list[tuple[float, tuple[int, ...]]]:
    """A list that grows by (rate, shape) at every dropout from now on; attention's, which has no shape of its own, is (rate, "attention")."""
    seen: list[Any] = []
    drop, attend = nn.functional.dropout, nn.functional.scaled_dot_product_attention

    def record(x, p=0.5, training=True, inplace=False):
        seen.extend([(p, tuple(x.shape))] if training and p else [])
        return drop(x, p, training, inplace)

    def record_attention(q, k, v, mask=None, p=0.0, causal=False, dropout_p=0.0, is_causal=False, **rest):
        seen.extend([(p or dropout_p, ("attention",))] if p or dropout_p else [])
        return attend(q, k, v, rest.pop("attn_mask", mask), 0.0, causal or is_causal, **rest)

    monkeypatch.setattr(nn.functional, "dropout", record)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", record_attention)
    return seen


def head_scores(model: nn.Module, head: str, ids: Tensor) -> Tensor:
    """What their model with a head for a task says of ids, laid out as our heads do."""
    if head == "choose":
        return model(ids[None]).logits[0, :, None]
    out = model(ids)
    return torch.stack([out.start_logits, out.end_logits], -1) if head == "spans" else out.logits
