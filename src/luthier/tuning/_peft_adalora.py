"""peft's AdaLoRA files, both ways: `lora_A` (k, I), `lora_B` (O, k) and `lora_E` (k, 1) with the k ranks that are left.

rank_pattern says which of init_r they were, and the scale goes by init_r. Triplets of several roles on one fused projection stand one
after the other, B block-diagonal; where they are more than `rank`, init_r is their number and E makes up for the scale.
"""

from typing import Any

import torch
from torch import Tensor

from luthier.config import build
from luthier.lookup import lookup
from luthier.tuning._attached import Attached
from luthier.tuning._folder import DELTA
from luthier.tuning._match import choose, targets
from luthier.tuning._names import Names
from luthier.tuning._peft import Peft
from luthier.tuning._stored import Written
from luthier.tuning._triplets import Triplets, orthogonality
from luthier.tuning._write_lora import beside, whole_modules

ENDS = {".lora_A": "a", ".lora_B": "b", ".lora_E": "e"}


def adalora(attached: Attached, names: Names) -> Written:
    """The triplets that are left, and beside them the modules that train whole."""
    method = attached.method
    found = {module: terms for module in names.places if any(terms := _terms(names, module, attached.name))}
    remaining = {module: [None if term is None else term.remaining() for term in terms] for module, terms in found.items()}
    fused = {module: [0 if rows is None else int(rows.sum()) for rows in kept] for module, kept in remaining.items() if len(kept) > 1}
    scales = {module: [0.0 if term is None else term.scale for term in terms] for module, terms in found.items()}
    most = max([method.rank, *(sum(counts) for counts in fused.values())])
    tensors: dict[str, Tensor] = {}
    pattern: dict[str, list[bool]] = {}
    for module, terms in found.items():
        triples = zip(names.places[module], terms, remaining[module], strict=True)
        there = [(place, term.left(), rows) for place, term, rows in triples if term is not None and rows is not None]
        tensors |= _tensors(names, module, [each[:2] for each in there], (most + 1e-5) / (method.rank + 1e-5))
        exact = there[0][2].tolist() if len(terms) == 1 else [True] * sum(fused[module])
        pattern[f"{module}.lora_E"] = exact + [False] * (most - len(exact))
    stored = beside(attached, names)
    config = {
        "peft_type": "ADALORA", "r": 8, "init_r": most, "target_r": method.target, "lora_alpha": method.alpha, "lora_dropout": method.dropout,
        "tinit": method.warmup, "tfinal": method.final, "deltaT": method.every, "beta1": method.betas[0], "beta2": method.betas[1],
        "orth_reg_weight": method.orthogonal, "total_step": method.steps or method.warmup + method.final + 1,
        "rank_pattern": pattern, "bias": "none", "init_lora_weights": True,
        "fan_in_fan_out": any(names.fan_in_fan_out(module) for module in found), "exclude_modules": None, "layers_pattern": None,
        "trainable_token_indices": None,
    }  # fmt: skip
    config |= whole_modules(attached, names, stored, found.keys())
    return Written(
        config | choose(set(found), names.everything(), config, set()), tensors | stored, notes={"fused": fused, "scales": scales}
    )


def _terms(names: Names, module: str, name: str) -> list[Triplets | None]:
    found = [place.site.adapter(name) for place in names.places[module]]
    return [term if isinstance(term, Triplets) else None for term in found]


def _tensors(names: Names, module: str, there: list[Any], stretch: float) -> dict[str, Tensor]:
    a_KI = torch.cat([a for _, (a, _, _) in there])
    e_K1 = torch.cat([e for _, (_, _, e) in there]) * stretch
    b_OK, column = a_KI.new_zeros(names.total(module), len(a_KI)), 0
    for place, (_, block, _) in there:
        b_OK[slice(None) if place.rows is None else place.rows, column : column + block.shape[1]] = block
        column += block.shape[1]
    return {f"{module}.lora_A": a_KI, f"{module}.lora_B": b_OK, f"{module}.lora_E": e_K1}


class ReadAdaLoRA(Peft):
    """peft's AdaLoRA. Its ranks are shared out already: what is read keeps them."""

    known = frozenset(
        {
            "r", "init_r", "target_r", "lora_alpha", "lora_dropout", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight",
            "total_step", "rank_pattern", "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
            "fan_in_fan_out", "init_lora_weights", "trainable_token_indices", "ensure_weight_tying", "alpha_pattern", "use_rslora",
        }
    )  # fmt: skip

    def attached(self) -> Attached:
        self.check_settings()
        found: dict[str, dict[str, Tensor]] = {}
        own: set[str] = set()
        for stored, value in self.tensors.items():
            end = next((end for end in ENDS if stored.endswith(end)), None)
            if end is not None:
                found.setdefault(stored.removesuffix(end), {})[ENDS[end]] = value
            elif not stored.endswith(DELTA):
                own.add(stored)
        places = self.own_places(own)
        covered = {self.names.stored(site.path, parameter).path for site, parameter in places}
        expected = {module for module in self.names.places if targets(self.config, module)}
        ends = {side: end for end, side in ENDS.items()}
        missing = {module + end for module in expected - found.keys() for end in ENDS}
        missing |= {module + ends[side] for module, parts in found.items() for side in ends.keys() - parts.keys()}
        strange = {module + ends[side] for module in found.keys() - self.names.places.keys() for side in found[module]}
        self.refuse(missing, strange | (own - covered))
        self.refuse((), (), [misfit for module, parts in found.items() if (misfit := self._misfit(module, parts))])
        terms = [term for module, parts in found.items() for term in self._attach(module, parts)]
        self.attach_own(places)
        self.rows()
        method = self._method(found)
        attached = Attached(self.anatomy, self.name, method, self.parameters)
        attached.penalty_of = lambda: method.orthogonal * orthogonality(terms)
        return attached

    def _misfit(self, module: str, parts: dict[str, Tensor]) -> str:
        rank = len(parts["e"])
        wanted = ((rank, self.names.places[module][0].site.weight.shape[1]), (self.names.total(module), rank), (rank, 1))
        have = tuple(tuple(parts[side].shape) for side in "abe")
        return "" if have == wanted else f"{module} has A, B and E {have}, here they are {wanted}"

    def _attach(self, module: str, parts: dict[str, Tensor]) -> list[Triplets]:
        scale = self.config["lora_alpha"] / (self.config["init_r"] + 1e-5)
        ranks, scales, column, terms = self.folder.fused.get(module), self.folder.scales.get(module), 0, []
        for i, place in enumerate(self.names.places[module]):
            like, block = place.site.weight, slice(None)
            if ranks is not None and place.rows is not None:
                block, column = slice(column, column + ranks[i]), column + ranks[i]
            if len(parts["e"][block]) == 0:  # nothing is left of it
                continue
            b_OK = parts["b"] if place.rows is None else parts["b"][place.rows]
            own_scale = scales[i] if scales else scale
            triplet = (parts["a"][block], b_OK[:, block], parts["e"][block] * (scale / own_scale))
            values = (value.to(like.device, like.dtype, copy=True) for value in triplet)
            term = Triplets(*values, own_scale, self.config.get("lora_dropout") or 0.0)
            place.site.wrap(self.name, term)
            self.parameters |= {f"{place.site.address}.{part}": value for part, value in term.triplet().items()}
            terms.append(term)
        return terms

    def _method(self, found: dict[str, Any]) -> Any:
        fields = {key: value for key, value in self.folder.method.items() if key != "kind"}
        if not fields:
            config = self.config
            roles = dict.fromkeys(place.site.role for module in found for place in self.names.places[module] if place.site.role)
            fields = {
                "roles": tuple(roles), "rank": config["init_r"], "target": min(config["target_r"], config["init_r"]), "alpha": config["lora_alpha"],
                "steps": config["total_step"], "warmup": config["tinit"], "final": config["tfinal"], "every": config["deltaT"],
                "betas": (config["beta1"], config["beta2"]), "orthogonal": config["orth_reg_weight"], "dropout": config["lora_dropout"],
            }  # fmt: skip
        return build(lookup("tuning", "adalora"), fields)
