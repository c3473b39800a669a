"""Folders of the library adapters, read only: bottlenecks, invertible adapters, Compacter, prefixes, fusions (Poth et al. 2023, arXiv:2311.11077).

Its tensors stand under the modules of the model with the adapter's name among them; what it calls which sublayer is sorted out here. Heads
of classification, tagging and spans lie in files of their own beside them; they are the head of the model here, under the adapter's name.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from luthier.anatomy.call import positions_of
from luthier.config import build
from luthier.core.transformer import Transformer
from luthier.lookup import lookup
from luthier.tuning._attached import Attached
from luthier.tuning._bottleneck import SUBLAYERS, is_post_norm
from luthier.tuning._folder import CONFIG, LIBRARY_FUSION, LIBRARY_HEAD
from luthier.tuning._reading import Reading, set_values

ACTS = {"relu": "relu", "gelu": "gelu", "swish": "silu", "silu": "silu", "gelu_new": "gelu_tanh", "tanh": "tanh"}
OF_BLOCK = {"attn": "attention_adapters", "cross": "cross_attention_adapters", "ffn": "output_adapters"}  # beside a sublayer, not in it
GROUPS = {"encoder_prefix": "encoder.self", "self_prefix": "decoder.self", "cross_prefix": "decoder.cross"}
# What a bottleneck here always does; a file that asks for something else is refused.
BOTTLENECK = {
    "original_ln_after": True, "ln_before": False, "ln_after": False, "use_gating": False, "residual_before_ln": True,
    "adapter_residual_before_ln": False, "stochastic_depth": 0.0, "dropout": 0.0,
}  # fmt: skip
PHM = {
    "factorized_phm_W": True,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "factorized_phm_rule": False,
    "learn_phm": True,
    "phm_bias": True,
}
FUSION = {
    "key": True, "query": True, "value": True, "query_before_ln": False, "residual_before": False, "temperature": False,
    "value_before_softmax": True,
}  # fmt: skip
PREFIX = {"use_gating": False, "leave_out": []}


class ReadLibrary(Reading):
    """One folder of that library."""

    def attached(self) -> Attached:
        self.settings, self.its_name = self.config["config"], self.config["name"]
        if self.folder.head:
            self._check_head()
        if "adapter_names" in self.config:
            return self._fusion()
        if self.settings.get("architecture") == "prefix_tuning":
            return self._prefix()
        if self.settings.get("architecture") is not None:
            raise ValueError(f"{self.folder.path / CONFIG}: {self.settings['architecture']!r} of the library adapters is not read here")
        return self._bottleneck()

    def _bottleneck(self) -> Attached:
        kind, fields = self._method()
        self._check_places(kind, fields)
        attached = build(lookup("tuning", kind), fields).attach(self.anatomy, self.name)
        stems = self._stems(f".adapters.{self.its_name}.")
        ends = {"weight": "weight", "bias": "bias", "left_NPR": "W_left", "right_NRQ": "W_right"}
        wanted: dict[str, str] = {}
        for name in attached.parameters:
            address, _, end = name.rpartition(".")
            if name.startswith("heads."):
                wanted[name] = self._of_head(name)
            elif name == "rule":
                wanted[name] = next(
                    (key for key in self.folder.tensors if key.endswith(f"shared_parameters.{self.its_name}.phm_rule")), name
                )
            elif address.startswith("embed."):
                place = {"f_in": "F.0", "f_out": "F.2", "g_in": "G.0", "g_out": "G.2"}[address.rpartition(".")[2]]
                known = f"invertible_adapters.{self.its_name}.{place}.{end}"
                wanted[name] = next((key for key in self.folder.tensors if key.endswith(known)), known)
            else:
                address, _, side = address.rpartition(".")
                place = {"down": "adapter_down.0", "up": "adapter_up"}[side]
                stored = "b" if kind == "compacter" and end == "bias" else ends[end]
                wanted[name] = f"{stems.get(address, address)}.adapters.{self.its_name}.{place}.{stored}"
        self._fill(attached, wanted)
        return attached

    def _check_head(self) -> None:
        """Only a bottleneck brings its head, onto a model of ours that reads sentences by their first token, as the library does."""
        net, (kind,) = self.anatomy.net, self.folder.heads
        if self.settings.get("architecture") is not None or "adapter_names" in self.config:
            raise ValueError(f"{self.folder.path / LIBRARY_HEAD}: the head of a bottleneck is read here, of others not; take its files out")
        if not isinstance(net, Transformer) or kind not in net.heads or (kind == "classify" and net.causal):
            raise ValueError(
                f"{self.folder.path / LIBRARY_HEAD}: a head of the library adapters goes onto an encoder that is loaded from its folder with "
                f"luthier.load(..., adapter=...), and this is {type(self.anatomy.root).__name__}; or take the head's two files out of the folder"
            )

    def _of_head(self, name: str) -> str:
        """heads.classify.pooler.dense.weight is its first layer, heads.classify.out.weight its last one: places in a Sequential."""
        _, kind, part, *_, end = name.split(".")
        if not self.folder.head:
            raise ValueError(f"{self.folder.path}: the model has a head ({kind}) and the folder none; load the model without its head")
        return f"heads.{self.its_name}.{4 if (part, kind) == ('out', 'classify') else 1}.{end}"

    def _method(self) -> tuple[str, dict[str, Any]]:
        """The plug-in and its fields."""
        s = self.settings
        self._check(BOTTLENECK | (PHM if s.get("phm_layer") else {}))
        after = [name for name, key in (("attn", "mh_adapter"), ("cross", "cross_adapter"), ("ffn", "output_adapter")) if s.get(key)]
        reads = "in" if s.get("is_parallel") else "sum" if s.get("original_ln_before") else "out"
        if (
            s["non_linearity"].lower() not in ACTS
            or not isinstance(s.get("scaling", 1.0), float)
            or not isinstance(s["reduction_factor"], int | float)
        ):
            self._refuse({key: s.get(key) for key in ("non_linearity", "scaling", "reduction_factor")})
        fields: dict[str, Any] = {"act": ACTS[s["non_linearity"].lower()], "blocks": self._blocks()}
        whole = int(s["reduction_factor"]) == s["reduction_factor"]
        if s.get("phm_layer"):
            if reads != "out" or s.get("scaling", 1.0) != 1.0 or not whole:
                self._refuse({key: s.get(key) for key in ("original_ln_before", "is_parallel", "scaling", "reduction_factor")})
            fields |= {"reduction": int(s["reduction_factor"]), "summands": s["phm_dim"], "rank": s["phm_rank"]}
            return "compacter", fields | {"after": tuple(after), "norms": False}
        if s.get("inv_adapter"):
            if s["inv_adapter"] != "nice" or after != ["ffn"] or reads != "sum" or s.get("scaling", 1.0) != 1.0 or not whole:
                self._refuse({key: s.get(key) for key in ("inv_adapter", "mh_adapter", "original_ln_before", "is_parallel", "scaling")})
            return "mad_x", fields | {"reduction": int(s["reduction_factor"])}
        width = max(1, int(self.anatomy.find("o")[0].weight.shape[0] // s["reduction_factor"]))
        return "adapter", fields | {"after": tuple(after), "reads": reads, "width": width, "scale": s.get("scaling", 1.0), "norms": False}

    def _check_places(self, kind: str, fields: dict[str, Any]) -> None:
        """Places that the library has and that are other ones here."""
        body = self.anatomy
        if fields.get("reads") == "in" and not all(is_post_norm(body, stack) for stack in body.stacks.values()):
            raise ValueError(
                f"{self.folder.path}: its parallel adapter reads the residual stream before the norm, here one reads the sublayer's input"
            )
        stem = body.embed.path.rpartition(".")[0]
        apart = any(
            site.path.rpartition(".")[0] == stem and isinstance(site.module, nn.Embedding)
            for name in body.stacks
            for site in positions_of(body, name)
        )
        if kind == "mad_x" and apart and any(stack.path.startswith(f"{stem}.") for stack in body.stacks.values()):
            raise ValueError(
                f"{self.folder.path}: its invertible adapter takes tokens and positions together, for which {type(body.root).__name__} has no "
                "module; load the model from its folder with luthier"
            )

    def _blocks(self) -> tuple[int, ...] | None:
        out = self.settings.get("leave_out") or []
        if out and len(self.anatomy.stacks) > 1:
            self._refuse({"leave_out": out})
        return tuple(i for i in range(len(self.anatomy.blocks)) if i not in out) if out else None

    def _prefix(self) -> Attached:
        s = self.settings
        self._check(PREFIX)
        if self.anatomy.kind == "t5" or "relative" in dict(self.anatomy.net.named_children()):
            raise ValueError(
                f"{self.folder.path}: the library moves T5's relative positions by its prefix, which a prefix here does not: not read"
            )
        if s["non_linearity"] != "tanh":
            self._refuse({"non_linearity": s["non_linearity"]})
        found: dict[str, Tensor] = {}  # the library writes them once for every layer
        for key, value in self.folder.tensors.items():
            found.setdefault(key.rpartition(f"prefix_tunings.{self.its_name}.")[2], value)
        only = next(iter(self.anatomy.stacks))
        groups = GROUPS if len(self.anatomy.stacks) > 1 else {"self_prefix": f"{only}.self"}
        have = {key.partition(".")[0] for key in found}
        fields = {
            "length": s["prefix_length"],
            "dropout": s["dropout"],
            "shift": False,
            "at": tuple(groups[each] for each in groups if each in have),
        }
        kind = "p_tuning_v2" if s["flat"] else "prefix"
        attached = build(lookup("tuning", kind), fields if s["flat"] else fields | {"hidden": s["bottleneck_size"]}).attach(
            self.anatomy, self.name
        )
        self.folder.tensors = {key: value.view(s["prefix_length"], -1) if s["flat"] else value for key, value in found.items()}
        ends = {"prefix": "control_trans", "words": "wte.weight", "inner": "control_trans.0", "outer": "control_trans.2"}
        theirs = {ours: group for group, ours in groups.items()}
        wanted = {}
        for name in attached.parameters:
            group, _, end = name.partition(".prefix.")
            part, dot, parameter = end.partition(".")
            wanted[name] = f"{theirs[group]}.{ends[part]}{dot}{parameter}"
        self._fill(attached, wanted)
        return attached

    def _fusion(self) -> Attached:
        self._check(FUSION)
        members = {name: self._member(name) for name in self.config["adapter_names"]}
        fresh = [name for name in members if name not in self.anatomy.adapters]
        try:
            fields = {"adapters": {name: str(path) for name, path in members.items()}, "dropout": self.settings.get("dropout_prob") or 0.0}
            attached = build(lookup("tuning", "adapter_fusion"), fields).attach(self.anatomy, self.name)
            stems = self._stems(f".adapter_fusion_layer.{self.its_name}.")
            of_path = {site.path: site.address for role in ("o", "down") for site in self.anatomy.find(role)}
            wanted = {}
            for name in attached.parameters:
                path, matrix, parameter = name.rsplit(".", 2)
                stem = stems.get(of_path.get(path) or path, path)
                wanted[name] = f"{stem}.adapter_fusion_layer.{self.its_name}.{matrix}.{parameter}"
            self._fill(attached, wanted)
        except BaseException:
            for name in fresh:
                self.anatomy.remove(name)
            raise
        return attached

    def _member(self, name: str) -> Path:
        here = self.folder.path
        found = next((path for path in (here / name, here.parent / name) if (path / CONFIG).is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"{here / LIBRARY_FUSION}: it fuses {name!r}, whose folder lies neither in {here} nor beside it; put it there"
            )
        return found

    def _stems(self, mark: str) -> dict[str, str]:
        """Address of the place that a sublayer's output leaves -> what its tensors stand under in the file."""
        there = {key.partition(mark)[0] for key in self.folder.tensors if mark in key}
        found: dict[str, str] = {}
        for name, address, stored in self._places():
            block = re.match(r"(.*?\.)??\w+\.\d+(?=\.)", stored)
            assert block is not None
            exact = [stem for stem in there if stored.startswith(f"{self._canonical(stem)}.")]
            beside = [stem for stem in there if self._canonical(stem) == f"{block[0]}.{OF_BLOCK[name]}"]
            if exact or beside:
                found[address] = max(exact, key=len) if exact else beside[0]
        return found

    def _places(self) -> Iterator[tuple[str, str, str]]:
        """(sublayer, address, stored module) of every output of a sublayer."""
        for name, (_, leaves, _) in SUBLAYERS.items():
            try:
                sites = self.anatomy.find(leaves)
            except ValueError:  # no such sublayer
                continue
            for site in sites:
                yield name, site.address, self.names.module(site)

    def _canonical(self, stem: str) -> str:
        """A path of the file as this model has it: the file may be of the bare backbone, or the model may."""
        block = re.match(r"(.*?\.)??\w+\.\d+(?=\.)", stem)
        known = block and self.names.find(block[0])
        return stem.replace(block[0], known, 1) if block and known else stem

    def _fill(self, attached: Attached, wanted: dict[str, str]) -> None:
        tensors = self.folder.tensors
        self.tensors = tensors
        shapes = [
            f"{key} is {tuple(tensors[key].shape)}, here {tuple(attached.parameters[name].shape)}"
            for name, key in wanted.items() if key in tensors and tensors[key].shape != attached.parameters[name].shape
        ]  # fmt: skip
        self.refuse(set(wanted.values()) - tensors.keys(), tensors.keys() - set(wanted.values()), shapes)
        for name, key in wanted.items():
            set_values(attached.parameters[name], tensors[key])

    def _check(self, always: dict[str, Any]) -> None:
        self._refuse({key: self.settings[key] for key, value in always.items() if self.settings.get(key, value) != value})

    def _refuse(self, strange: dict[str, Any]) -> None:
        if strange:
            told = ", ".join(f"{key}={value!r}" for key, value in strange.items())
            raise ValueError(f"{self.folder.path}: settings of the library adapters that are not read here: {told}")
