"""Adapters in peft's format: adapter_config.json, adapter_model.safetensors, and luthier_state.safetensors, which peft ignores.

A method that peft has is written as peft writes it (FORMATS), every other one by the names of its tensors.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luthier.core.heads import LabelHead
from luthier.core.transformer import Net
from luthier.sources.save import replace_folder, write_json
from luthier.sources.tensor_files import write_safetensors
from luthier.tuning._attached import Attached
from luthier.tuning._folder import CONFIG, STATE, TABLE, WEIGHTS
from luthier.tuning._names import Names
from luthier.tuning._peft_adalora import adalora
from luthier.tuning._peft_ia3 import ia3
from luthier.tuning._peft_prefix import prefix
from luthier.tuning._peft_prompt import prompt
from luthier.tuning._stored import kind_of, new_rows, plain, token_indices
from luthier.tuning._write_lora import filled, lora

PEFT_VERSION = "0.21.2"  # whose format this is
TASKS = {"classify": "SEQ_CLS", "regress": "SEQ_CLS", "tag": "TOKEN_CLS", "spans": "QUESTION_ANS"}
FORMATS = {
    "lora": lora,
    "qlora": lora,
    "ia3": ia3,
    "adalora": adalora,
    "prefix": prefix,
    "p_tuning_v2": prefix,
    "prompt": prompt,
    "p_tuning": prompt,
}  # kind of method -> peft's format


def write(attached: Attached, directory: Path) -> None:
    """Replaces what stood in the folder, whole or not at all."""
    if attached.whole:
        raise ValueError("full tuning has no adapter to save: the whole model trains; save the model (Model.save)")
    names, kind = Names(attached.anatomy), kind_of(attached.method)
    written = FORMATS.get(kind, plain)(attached, names)
    config = common(attached) | written.config | token_indices(attached, names)
    tensors = written.tensors | new_rows(attached, names)
    notes = {
        "method": {"kind": kind} | asdict(attached.method),
        "fused": {},
        "filled": [name for name in filled(attached, names) if name in tensors],
        "tokens": list(attached.anatomy.grown.values()),
    } | written.notes
    notes["heads"] = {name: len(head.out.weight) for name, head in attached.anatomy.task_heads().items() if isinstance(head, LabelHead)}
    state = {name: value.detach().cpu() for name, value in written.state.items()}

    def at(name: str) -> str:
        return name if name.startswith(TABLE) else written.prefix + name

    def fill(place: Path) -> None:
        write_json(place / CONFIG, dict(sorted(config.items())))
        write_safetensors(place / WEIGHTS, {at(name): value.detach().cpu() for name, value in tensors.items()})
        write_safetensors(place / STATE, state, {name: json.dumps(note) for name, note in notes.items()})
        if attached.anatomy.grown and attached.tokenizer is not None:
            attached.tokenizer.save(place)

    replace_folder(directory, fill, sum(value.nbytes for value in (*tensors.values(), *state.values())))


def common(attached: Attached) -> dict[str, Any]:
    """What every adapter_config.json holds."""
    net = attached.anatomy.net
    heads = net.heads.keys() if isinstance(net, Net) else {"lm": None}.keys()
    task = next((task for kind, task in TASKS.items() if kind in heads), None)
    if task is None and "lm" in heads and isinstance(net, Net) and net.causal:
        task = "SEQ_2_SEQ_LM" if len(attached.anatomy.stacks) > 1 else "CAUSAL_LM"
    return {
        "auto_mapping": None, "base_model_name_or_path": attached.source or None, "revision": None, "task_type": task, "inference_mode": True,
        "peft_version": PEFT_VERSION,
    }  # fmt: skip
