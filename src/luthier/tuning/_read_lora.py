"""peft's LoRA files, onto our models and transformers models alike."""

from typing import Any

import torch
from torch import Tensor, nn

from luthier import lookup
from luthier.config import build
from luthier.tuning._attached import Attached
from luthier.tuning._folder import DELTA
from luthier.tuning._lowrank import around
from luthier.tuning._match import pattern, targets
from luthier.tuning._names import Place
from luthier.tuning._peft import Peft
from luthier.tuning._reading import BASE, ENDS

READ = frozenset({
    "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "trainable_token_indices", "ensure_weight_tying", "init_lora_weights", "fan_in_fan_out",
})  # fmt: skip


class ReadLoRA(Peft):
    """peft's LoRA."""

    known = READ

    def attached(self) -> Attached:
        self.check_settings()
        low_rank = self._low_rank()
        own = {stored for stored in self.tensors if not stored.endswith((*ENDS, DELTA, BASE))}
        places = self.own_places(own)
        covered = {self.names.stored(site.path, parameter).path for site, parameter in places}
        expected = {
            module for module in self.names.places if self.config.get("target_modules") != "all-linear" and targets(self.config, module)
        }
        missing = {f"{module}.lora_A.weight" for module in expected - low_rank.keys()}
        missing |= {f"{module}.lora_{'B' if 'a' in pair else 'A'}.weight" for module, pair in low_rank.items() if len(pair) < 2}
        unexpected = {stored for stored in self.tensors if stored.endswith((*ENDS,)) and self._module(stored) not in self.names.places}
        self.refuse(missing, unexpected | (own - covered))
        shapes = [shape for module, pair in low_rank.items() if (shape := self._misfit(module, pair))]
        self.refuse((), (), shapes)
        self._check_base()
        for module, pair in low_rank.items():
            self._attach(module, pair)
        self.attach_own(places)
        self.rows()
        return Attached(self.anatomy, self.name, self._method(low_rank), self.parameters)

    def _module(self, stored: str) -> str:
        return next(stored.removesuffix(end) for end in ENDS if stored.endswith(end))

    def _low_rank(self) -> dict[str, dict[str, Tensor]]:
        """A and B by stored module."""
        found: dict[str, dict[str, Tensor]] = {}
        for stored, value in self.tensors.items():
            for end, side in ENDS.items():
                if stored.endswith(end) and stored.removesuffix(end) in self.names.places:
                    found.setdefault(stored.removesuffix(end), {})[side] = value
        return found

    def _misfit(self, module: str, pair: dict[str, Tensor]) -> str:
        """What is wrong with the shapes of a module's terms, or nothing."""
        site, rank = self.names.places[module][0].site, pattern(self.config.get("rank_pattern") or {}, module, self.config["r"])
        width = site.weight.shape[0] if isinstance(site.module, nn.Embedding) else site.weight.shape[1]
        total = site.weight.shape[1] if isinstance(site.module, nn.Embedding) else self.names.total(module)
        wanted, have = ((rank, width), (total, rank)), (tuple(pair["a"].shape), tuple(pair["b"].shape))
        return "" if wanted == have else f"{module} has A {have[0]} and B {have[1]}, here they are {wanted[0]} and {wanted[1]}"

    def _check_base(self) -> None:
        """peft stores the base embedding beside its low-rank terms: it must be the one that is here."""
        for stored in [stored for stored in self.tensors if stored.endswith(BASE)]:
            places = self.names.places.get(stored.removesuffix(BASE))
            if places is None or not _same(places[0].site.module.weight, self.tensors[stored]):  # type: ignore[arg-type]
                raise ValueError(
                    f"{self.folder.path}: it holds a base embedding ({stored}) that differs from this model's: it is for another model"
                )

    def _attach(self, module: str, pair: dict[str, Tensor]) -> None:
        rank = pair["a"].shape[0]
        alpha = pattern(self.config.get("alpha_pattern") or {}, module, self.config["lora_alpha"])
        scale = alpha / (rank**0.5 if self.config.get("use_rslora") else rank)
        places = self.names.places[module]
        ranks = self.folder.fused.get(module)
        column = 0
        for i, place in enumerate(places):
            a_RI, b_OR = pair["a"], pair["b"]
            if ranks is not None and place.rows is not None:  # ours: one block of A's rows and B's columns for each role
                if ranks[i] == 0:
                    continue
                block = slice(column, column + ranks[i])
                a_RI, b_OR, column = a_RI[block], b_OR[:, block], column + ranks[i]
            self._wrap(place, a_RI, b_OR, scale)

    def _wrap(self, place: Place, a_RI: Tensor, b_OR: Tensor, scale: float) -> None:
        site = place.site
        like = site.weight
        dtype = torch.promote_types(like.dtype, a_RI.dtype) if a_RI.is_floating_point() else like.dtype
        b_OR = b_OR if place.rows is None else b_OR[place.rows]
        a_RI, b_OR = (value.to(like.device, dtype, copy=True) for value in (a_RI, b_OR))
        adapter = around(site, a_RI, b_OR, scale, self.config.get("lora_dropout") or 0.0)
        site.wrap(self.name, adapter)
        self.parameters |= {f"{site.address}.a": adapter.a_RI, f"{site.address}.b": adapter.b_OR}

    def _method(self, low_rank: dict[str, Any]) -> Any:
        kind = lookup.lookup("tuning", "lora")
        if self.folder.method.get("kind") == "lora":
            return build(kind, {key: value for key, value in self.folder.method.items() if key != "kind"})
        roles = dict.fromkeys(place.site.role for module in low_rank for place in self.names.places[module] if place.site.role)
        layers = self.config.get("layers_to_transform")
        fields = {
            "roles": tuple(roles),
            "rank": self.config["r"],
            "alpha": self.config["lora_alpha"],
            "dropout": self.config.get("lora_dropout") or 0.0,
        }
        fields |= {"rslora": bool(self.config.get("use_rslora")), "blocks": [layers] if isinstance(layers, int) else layers or None}
        return build(kind, fields)


def _same(here: Tensor, stored: Tensor) -> bool:
    return here.shape == stored.shape and torch.equal(here.detach().cpu().to(stored.dtype), stored)
