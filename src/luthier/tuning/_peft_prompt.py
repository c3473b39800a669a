"""peft's PROMPT_TUNING and P_TUNING files, both ways: one tensor (P, D) of vectors that stand before every text.

Of an encoder-decoder peft stores (2 P, D) and reads the first half, before the encoder's text; that is read only. What makes the vectors
while they train stands beside them, in luthier_state.safetensors.
"""

from typing import Any

import torch
from torch import Tensor

from luthier.anatomy.virtual import Rows, free
from luthier.config import build
from luthier.lookup import lookup
from luthier.tuning._attached import Attached
from luthier.tuning._folder import TABLE
from luthier.tuning._names import Names
from luthier.tuning._peft import Peft
from luthier.tuning._prompt import Prompt, encoded, put, stacks_of, weight_of
from luthier.tuning._reading import set_values
from luthier.tuning._stored import Written, kind_of
from luthier.tuning._write_lora import beside, whole_modules


def prompt(attached: Attached, names: Names) -> Written:
    """peft's format where it can hold this prompt: before the texts of a model with one stack."""
    body = attached.anatomy
    around = [around for _, around in body.arounds() if attached.name in around.adapters]
    rows = [adapter for each in around if isinstance(adapter := each.adapters[attached.name], Rows)]
    with torch.no_grad():
        tables = {adapter.stack: adapter.table().detach() for adapter in rows}
    stored = beside(attached, names)
    config = whole_modules(attached, names, stored, (), ties=False)
    state: dict[str, Tensor] = {name: value for name, value in attached.parameters.items() if ".prompt." in name}
    if len(body.stacks) > 1 or "" in tables:
        tensors = {f"{TABLE}.{stack}": value for stack, value in tables.items()}
        return Written(config | {"peft_type": kind_of(attached.method).upper()}, tensors | stored, state, prefix="base_model.")
    table = next(iter(tables.values()))
    config |= {
        "peft_type": "PROMPT_TUNING", "num_virtual_tokens": len(table), "token_dim": table.shape[1], "num_transformer_submodules": 1,
        "num_attention_heads": 1, "num_layers": len(body.blocks), "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None,
        "tokenizer_name_or_path": None, "tokenizer_kwargs": None,
    }  # fmt: skip
    return Written(config, {TABLE: table} | stored, state, prefix="base_model.")


class ReadPrompt(Peft):
    """peft's prompts, and ours with their encoder where they are to go on training."""

    known = frozenset(
        {"num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers", "num_transformer_submodules", "modules_to_save"}
        | {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"}
        | {"encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout"}
    )

    def attached(self) -> Attached:
        self.check_settings()
        tables, places = self.tables_and_places()
        noted = self.noted
        if not noted:
            length = self.config.get("num_virtual_tokens") or len(tables[""])
            tables, noted = {stacks_of(self.anatomy, ())[0]: tables[""][:length]}, {"length": length}
        elif "" in tables and not _in_text(self._method(noted)):
            tables = {next(iter(self.anatomy.stacks)): tables[""]}
        method, first = self._method(noted), free(self.anatomy)
        adapters = {stack: self._rows(method, stack, table, first) for stack, table in tables.items()}
        attached = put(self.anatomy, self.name, method, adapters, beside=False, ours=bool(self.noted))
        if self.trainable:
            for name, parameter in attached.parameters.items():
                if name in self.folder.state:
                    set_values(parameter, self.folder.state[name])
        self.attach_own(places)
        attached.parameters |= self.parameters
        return attached

    def _method(self, noted: dict[str, Any]) -> Any:
        return build(lookup("tuning", self.folder.method.get("kind", "prompt")), noted)

    def _rows(self, method: Any, stack: str, table: Tensor, first: int) -> Rows:
        like = weight_of(self.anatomy, stack or stacks_of(self.anatomy, ())[0])
        if table.shape[1] != like.shape[1]:
            self.refuse((), (), [f"{TABLE} is {tuple(table.shape)}, here a vector has {like.shape[1]} numbers"])
        if self.trainable and hasattr(method, "encoder") and self.folder.state:
            return encoded(method, like, len(table), stack, first)
        rows = Prompt(table.to(like.device, like.dtype, copy=True), stack, first, getattr(method, "hard", False))
        rows.template = getattr(method, "template", "")
        return rows


def _in_text(method: Any) -> bool:
    """Whether the texts bring its tokens, so that no stack has them before its own."""
    return getattr(method, "place", "") == "text" or bool(getattr(method, "template", ""))
