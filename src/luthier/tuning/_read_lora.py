"""peft's LoRA files, onto our models and transformers models alike."""

from typing import Any

import torch
from torch import Tensor, nn

from luthier import lookup
from luthier.config import build
from luthier.core.frozen import FrozenLinear
from luthier.tuning._attached import Attached
from luthier.tuning._folder import CONFIG, DELTA
from luthier.tuning._lowrank import around, principal, start_of, wrap
from luthier.tuning._match import pattern, targets
from luthier.tuning._names import Place
from luthier.tuning._peft import Peft
from luthier.tuning._reading import BASE, ENDS, set_values

READ = frozenset({
    "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern", "trainable_token_indices", "ensure_weight_tying", "init_lora_weights", "fan_in_fan_out", "use_dora",
})  # fmt: skip


class ReadLoRA(Peft):
    """peft's LoRA."""

    known = READ

    def attached(self) -> Attached:
        self.check_settings()
        self._check_start()
        low_rank = self._low_rank()
        own = {stored for stored in self.tensors if not stored.endswith((*ENDS, DELTA, BASE))}
        places = self.own_places(own)
        covered = {self.names.stored(site.path, parameter).path for site, parameter in places}
        expected = {
            module for module in self.names.places if self.config.get("target_modules") != "all-linear" and targets(self.config, module)
        }
        missing = {f"{module}.lora_A.weight" for module in expected - low_rank.keys()}
        sides = {"a": "lora_A.weight", "b": "lora_B.weight"} | ({"m": "lora_magnitude_vector"} if self.config.get("use_dora") else {})
        missing |= {f"{module}.{sides[side]}" for module, pair in low_rank.items() for side in sides.keys() - pair.keys()}
        ends = {end for end, side in ENDS.items() if side in sides}
        unexpected = {
            stored for stored in self.tensors
            if stored.endswith((*ENDS,)) and (self._module(stored) not in self.names.places or not stored.endswith((*ends,)))
        }  # fmt: skip
        self.refuse(missing, unexpected | (own - covered))
        shapes = [shape for module, pair in low_rank.items() if (shape := self._misfit(module, pair))]
        self.refuse((), (), shapes)
        self._check_base()
        for module, pair in low_rank.items():
            self._attach(module, pair)
        self.attach_own(places)
        self.rows()
        method = self._method(low_rank)
        factors = {name: method.b_factor for name in self.parameters if name.endswith(".b")} if method.b_factor != 1 else {}
        return Attached(self.anatomy, self.name, method, self.parameters, factors=factors, memory=self.memory)

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
        if "m" in pair and tuple(pair["m"].shape) != (total,):
            return f"{module} has magnitudes {tuple(pair['m'].shape)}, here they are {(total,)}"
        return "" if wanted == have else f"{module} has A {have[0]} and B {have[1]}, here they are {wanted[0]} and {wanted[1]}"

    def _check_base(self) -> None:
        """peft stores the base embedding beside its low-rank terms: it must be the one that is here."""
        for stored in [stored for stored in self.tensors if stored.endswith(BASE)]:
            places = self.names.places.get(stored.removesuffix(BASE))
            if places is None or not _same(places[0].site.module.weight, self.tensors[stored]):  # type: ignore[arg-type]
                raise ValueError(
                    f"{self.folder.path}: it holds a base embedding ({stored}) that differs from this model's: it is for another model"
                )

    def _check_start(self) -> None:
        """Some starts change the base, and only one of them can be made again from the base alone."""
        start = self.config.get("init_lora_weights", True)
        if start not in (True, False, None, "gaussian", "eva", "orthogonal", "pissa"):
            raise ValueError(
                f"{self.folder.path / CONFIG}: init_lora_weights={start!r} changed the base when training began, and that base is not here; "
                "convert it with peft's save_pretrained(path_initial_model_for_weight_conversion=...)"
            )

    def _attach(self, module: str, pair: dict[str, Tensor]) -> None:
        a_RI, b_OR, rank = pair["a"], pair["b"], pair["a"].shape[0]
        alpha = pattern(self.config.get("alpha_pattern") or {}, module, self.config["lora_alpha"])
        scale = alpha / (rank**0.5 if self.config.get("use_rslora") else rank)
        places = self.names.places[module]
        ranks, scales = self.folder.fused.get(module), self.folder.scales.get(module)
        start = principal(self._whole(module), rank, scale) if self.config.get("init_lora_weights") == "pissa" else None
        column = 0
        for i, place in enumerate(places):
            rows = slice(None) if place.rows is None else place.rows
            block = slice(None)
            if ranks is not None and place.rows is not None:  # ours: one block of A's rows and B's columns for each role
                if ranks[i] == 0:
                    continue
                block = slice(column, column + ranks[i])
                column += ranks[i]
            own_scale = scales[i] if scales else scale
            parts = (a_RI[block], b_OR[rows][:, block] * (scale / own_scale))
            if self.folder.method.get("start") == "pissa":  # ours: the start is the second half, taken out
                half = len(parts[0]) // 2
                own = ((parts[0][:half], parts[1][:, :half]), (parts[0][half:], -parts[1][:, half:]))
            else:
                own = (parts, None if start is None else (start[0], start[1][rows]))
            self._wrap(place, *own, own_scale, pair["m"][rows] if "m" in pair else None)

    def _whole(self, module: str) -> Tensor:
        """The stored module's weight, (O, I)."""
        places = self.names.places[module]
        if places[0].rows is None:
            return places[0].site.weight
        whole = places[0].site.weight.new_empty(self.names.total(module), places[0].site.weight.shape[1])
        for place in places:
            whole[place.rows] = place.site.weight
        return whole

    def _wrap(
        self, place: Place, factors: tuple[Tensor, Tensor], start: tuple[Tensor, Tensor] | None, scale: float, magnitude: Tensor | None
    ) -> None:
        site = place.site
        like = site.weight
        dtype = torch.promote_types(like.dtype, factors[0].dtype) if factors[0].is_floating_point() else like.dtype
        a_RI, b_OR = (value.to(like.device, dtype, copy=True) for value in factors)
        term = around(site, a_RI, b_OR, scale, self.config.get("lora_dropout") or 0.0)
        if start is not None:
            term.starts_from(*(value.to(like.device, dtype, copy=True) for value in start))
            self.memory |= start_of(site, term)
        named = wrap(site, self.name, term, dora=magnitude is not None)
        if magnitude is not None:
            set_values(named[f"{site.address}.magnitude"], magnitude)
        self.parameters |= named

    def _method(self, low_rank: dict[str, Any]) -> Any:
        kind, saved = lookup.lookup("tuning", "lora"), {key: value for key, value in self.folder.method.items() if key != "kind"}
        if self.folder.method.get("kind") == "lora":
            return build(kind, saved)
        if self.folder.method.get("kind") == "qlora" and any(isinstance(module, FrozenLinear) for _, module in self.anatomy.modules()):
            return build(lookup.lookup("tuning", "qlora"), saved)  # on a plain base it is lora
        roles = dict.fromkeys(place.site.role for module in low_rank for place in self.names.places[module] if place.site.role)
        layers = self.config.get("layers_to_transform")
        fields = {
            "roles": tuple(roles),
            "rank": self.config["r"],
            "alpha": self.config["lora_alpha"],
            "dropout": self.config.get("lora_dropout") or 0.0,
        }
        fields |= {
            "dora": bool(self.config.get("use_dora")),
            "start": "pissa" if self.config.get("init_lora_weights") == "pissa" else "kaiming",
        }
        fields |= {"rslora": bool(self.config.get("use_rslora")), "blocks": [layers] if isinstance(layers, int) else layers or None}
        return build(kind, fields)


def _same(here: Tensor, stored: Tensor) -> bool:
    return here.shape == stored.shape and torch.equal(here.detach().cpu().to(stored.dtype), stored)
