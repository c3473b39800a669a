"""peft's IA3 files, both ways: `ia3_l` is (O, 1) where outputs are scaled and (1, I) where inputs are.

Factors of single roles on a fused projection become one vector with ones on the other rows.
"""

from typing import Any

import torch
from torch import Tensor

from luthier.config import build
from luthier.lookup import lookup
from luthier.tuning._attached import Attached
from luthier.tuning._match import targets
from luthier.tuning._names import Names, Place, suffixes
from luthier.tuning._peft import Peft
from luthier.tuning._scale import ScaleIn, ScaleOut
from luthier.tuning._stored import Written, plain
from luthier.tuning._write_lora import beside, whole_modules

END = ".ia3_l"


def ia3(attached: Attached, names: Names) -> Written:
    """The vectors, and beside them the modules that train whole. peft's IA3 knows no added tokens: with some, the plain format."""
    if attached.anatomy.grown:
        return plain(attached, names)
    tensors: dict[str, Tensor] = {}
    fused: dict[str, list[int]] = {}
    inner: set[str] = set()
    for module, places in names.places.items():
        here = [place.site.adapter(attached.name) for place in places]
        if any(isinstance(adapter, ScaleIn) for adapter in here):
            if len(here) > 1:
                raise ValueError(f"peft's format cannot say that an input of {module} is scaled for some of its rows only; take `down`")
            inner.add(module)
        scales = [adapter.scale.detach() if isinstance(adapter, ScaleIn | ScaleOut) else None for adapter in here]
        known = next((scale for scale in scales if scale is not None), None)
        if known is None:
            continue
        if module in inner:
            tensors[module + END] = known[None]
            continue
        whole = known.new_ones(names.total(module))
        for place, scale in zip(places, scales, strict=True):
            if scale is not None:
                whole[slice(None) if place.rows is None else place.rows.to(whole.device)] = scale
        tensors[module + END] = whole[:, None]
        if len(here) > 1:
            fused[module] = [int(scale is not None) for scale in scales]
    modules = {stored.removesuffix(END) for stored in tensors}
    stored = beside(attached, names)
    config = {
        "peft_type": "IA3", "exclude_modules": None, "init_ia3_weights": True,
        "fan_in_fan_out": any(names.fan_in_fan_out(module) for module in modules),
    }  # fmt: skip
    config |= whole_modules(attached, names, stored, modules, ties=False) | _targets(names, modules, inner)
    return Written(config, tensors | stored, notes={"fused": fused})


def _targets(names: Names, modules: set[str], inner: set[str]) -> dict[str, Any]:
    """target_modules and feedforward_modules, which peft wants to be among them and matches as bare ends of names; short where that is exact."""
    everything = names.everything()
    for depth in range(3):
        ends = {module: list(suffixes(module))[min(depth, module.count("."))] for module in modules}
        wanted, scaled = sorted(set(ends.values())), sorted({ends[module] for module in inner})
        found = {module for module in everything if targets({"target_modules": wanted}, module)}
        if found == modules and {module for module in modules if module.endswith(tuple(scaled))} == inner:
            return {"target_modules": wanted, "feedforward_modules": scaled}
    return {"target_modules": sorted(modules), "feedforward_modules": sorted(inner)}


class ReadIA3(Peft):
    """peft's IA3."""

    known = frozenset({"target_modules", "exclude_modules", "feedforward_modules", "fan_in_fan_out", "modules_to_save", "init_ia3_weights"})

    def attached(self) -> Attached:
        self.check_settings()
        found = {name.removesuffix(END): value for name, value in self.tensors.items() if name.endswith(END)}
        own = {name for name in self.tensors if not name.endswith(END)}
        places = self.own_places(own)
        covered = {self.names.stored(site.path, parameter).path for site, parameter in places}
        expected = {module for module in self.names.places if targets(self.config, module)}
        self.refuse(
            {module + END for module in expected - found.keys()},
            {module + END for module in found.keys() - self.names.places.keys()} | (own - covered),
        )
        self.refuse((), (), [misfit for module, value in found.items() if (misfit := self._misfit(module, value))])
        roles, inner = dict[str, None](), dict[str, None]()
        for module, value in found.items():
            mine = self.folder.fused.get(module)
            for i, place in enumerate(self.names.places[module]):
                if mine is None or mine[i]:
                    self._wrap(place, value)
                    (roles if value.shape[1] == 1 else inner)[place.site.role] = None
        self.attach_own(places)
        return Attached(self.anatomy, self.name, self._method(tuple(roles), tuple(inner)), self.parameters)

    def _misfit(self, module: str, value: Tensor) -> str:
        wanted = ((self.names.total(module), 1), (1, self.names.places[module][0].site.weight.shape[1]))
        have = tuple(value.shape)
        return "" if have in wanted else f"{module}{END} is {have}, here it is {wanted[0]} or {wanted[1]}"

    def _wrap(self, place: Place, value: Tensor) -> None:
        like = place.site.weight
        dtype = torch.promote_types(like.dtype, value.dtype) if like.is_floating_point() else value.dtype
        if value.shape[1] == 1:
            part = value[:, 0] if place.rows is None else value[:, 0][place.rows]
            adapter = ScaleOut(part.to(like.device, dtype, copy=True))
        else:
            adapter = ScaleIn(value[0].to(like.device, dtype, copy=True))
        place.site.wrap(self.name, adapter)
        self.parameters[f"{place.site.address}.scale"] = adapter.scale

    def _method(self, roles: tuple[str, ...], inner: tuple[str, ...]) -> Any:
        fields = {key: value for key, value in self.folder.method.items() if key != "kind"}
        return build(lookup("tuning", "ia3"), fields or {"roles": roles, "inner": inner})
