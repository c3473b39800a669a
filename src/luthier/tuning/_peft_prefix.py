"""peft's PREFIX_TUNING files, both ways: one tensor (P, N * 2 * G * K), of each layer its keys, then its values.

What makes the numbers while they train (the MLP) stands beside them, in luthier_state.safetensors. Models with several kinds of attention
have a tensor for each, which peft cannot say; its own files of encoder-decoders hold a prefix of the decoder alone, half of it unused.

P prefix length, N layers, G key-value heads, K head width, M = N * 2 * G * K
"""

from typing import Any

import torch
from torch import Tensor

from luthier.anatomy.call import CallAround
from luthier.config import build
from luthier.lookup import lookup
from luthier.tuning._attached import Attached
from luthier.tuning._folder import TABLE
from luthier.tuning._names import Names
from luthier.tuning._peft import Peft
from luthier.tuning._prefix import LayerPrefix, attach
from luthier.tuning._reading import set_values
from luthier.tuning._stored import Written, kind_of
from luthier.tuning._write_lora import beside, whole_modules

NAME = "PREFIX_TUNING"


def prefix(attached: Attached, names: Names) -> Written:
    """peft's format where it can hold this prefix: one kind of attention, all layers, alike."""
    found: dict[str, list[LayerPrefix]] = {}
    for _, around in attached.anatomy.arounds():
        if isinstance(around, CallAround) and attached.name in around.adapters:
            adapter = around.adapters[attached.name]
            assert isinstance(adapter, LayerPrefix)
            found.setdefault(adapter.group, []).append(adapter)
    with torch.no_grad():
        numbers = {group: parts[0].source(0, sum(part.numbers for part in parts)).detach() for group, parts in found.items()}
    state: dict[str, Tensor] = {
        f"{group}.{key}": value for group, parts in found.items() for key, value in parts[0].source.named_parameters()
    }
    stored = beside(attached, names)
    config = whole_modules(attached, names, stored, (), ties=False)
    group, parts = next(iter(found.items()))
    alike = len({part.shapes for part in parts}) == 1 and parts[0].shapes[0] == parts[0].shapes[1]
    if len(found) > 1 or len(attached.anatomy.stacks) > 1 or not alike or len(parts) != len(attached.anatomy.blocks):
        tensors = {f"{TABLE}.{group}": value for group, value in numbers.items()}
        return Written(config | {"peft_type": kind_of(attached.method).upper()}, tensors | stored, state, prefix="base_model.")
    groups, length, width = parts[0].shapes[0]
    config |= {
        "peft_type": NAME, "num_virtual_tokens": length, "token_dim": groups * width, "num_attention_heads": groups, "num_layers": len(parts),
        "num_transformer_submodules": 1, "encoder_hidden_size": getattr(attached.method, "hidden", None), "prefix_projection": False,
        "init_weights": None,
    }  # fmt: skip
    return Written(config, {TABLE: numbers[group]} | stored, state, prefix="base_model.")


class ReadPrefix(Peft):
    """peft's prefixes, and ours with their encoder where they are to go on training."""

    known = frozenset(
        {"num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules", "encoder_hidden_size"}
        | {"prefix_projection", "init_weights", "modules_to_save", "trainable_token_indices"}
    )

    def attached(self) -> Attached:
        self.check_settings()
        tables, places = self.tables_and_places()
        method = self._method(tables)
        if "" in tables:
            two = len(self.anatomy.stacks) > 1
            tables = {"decoder.self": self._half(tables[""])} if two else {f"{next(iter(self.anatomy.stacks))}.self": tables[""]}
        hidden = getattr(method, "hidden", 0) if self.trainable and self.folder.state else 0
        attached = attach(self.anatomy, self.name, method, next(iter(tables.values())).shape[0], hidden, None, tables, beside=False)
        if hidden:
            self._resume(attached)
        self.attach_own(places)
        self.rows()
        attached.parameters |= self.parameters
        return attached

    def _method(self, tables: dict[str, Tensor]) -> Any:
        if self.noted:
            return build(lookup("tuning", self.folder.method["kind"]), self.noted)
        two = {"at": ("decoder.self",)} if len(self.anatomy.stacks) > 1 else {}
        return build(lookup("tuning", "p_tuning_v2"), {"length": self.config["num_virtual_tokens"], **two})

    def _half(self, table_PM: Tensor) -> Tensor:
        """peft lays its layers' slots twice over an encoder-decoder's, so that layer i reads slot 2 i mod N and the rest is never read."""
        if self.anatomy.kind == "t5" or "relative" in dict(self.anatomy.net.named_children()):
            raise ValueError(
                f"{self.folder.path}: peft trains T5's prefixes under its relative positions, which a prefix here is not: they are not read"
            )
        layers = self.config["num_layers"]
        slots = table_PM.unflatten(1, (layers, -1))
        return slots[:, [2 * i % layers for i in range(layers)]].flatten(1)

    def _resume(self, attached: Attached) -> None:
        mine = {name.replace(".prefix.", "."): value for name, value in attached.parameters.items() if ".prefix." in name}
        missing = mine.keys() - self.folder.state.keys()
        shapes = [name for name in mine.keys() - missing if mine[name].shape != self.folder.state[name].shape]
        self.refuse(missing, self.folder.state.keys() - mine.keys(), shapes)
        for name, parameter in mine.items():
            set_values(parameter, self.folder.state[name])
