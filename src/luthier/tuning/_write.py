"""Adapters in peft's format: adapter_config.json, adapter_model.safetensors, and luthier_state.safetensors, which peft ignores.

Several low-rank terms on one fused projection become one of the ranks' sum, block-diagonal in B, with alpha set so that the scale stays.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.anatomy.around import Adapter, Around, OnRows, Own
from luthier.core.heads import LabelHead
from luthier.core.transformer import Net
from luthier.sources.save import replace_folder, write_json
from luthier.sources.tensor_files import write_safetensors
from luthier.tuning._attached import Attached
from luthier.tuning._folder import CONFIG, DELTA, PREFIX, STATE, WEIGHTS
from luthier.tuning._lowrank import LowRank, LowRankEmbedding
from luthier.tuning._match import choose, patterns
from luthier.tuning._names import Names
from luthier.tuning._own import NewRows

PEFT_VERSION = "0.21.2"  # whose format this is
TASKS = {"classify": "SEQ_CLS", "regress": "SEQ_CLS", "tag": "TOKEN_CLS", "spans": "QUESTION_ANS"}


def write(attached: Attached, directory: Path) -> None:
    """Replaces what stood in the folder, whole or not at all."""
    if attached.whole:
        raise ValueError("full tuning has no adapter to save: the whole model trains; save the model (Model.save)")
    names = Names(attached.anatomy)
    config, tensors = common(attached), dict[str, Tensor]()
    fused: dict[str, list[int]] = {}
    low_rank = {module: terms for module in names.places if (terms := _terms(names, module, attached.name))}
    if low_rank:
        config |= _lora(attached, names, low_rank)
        for module in low_rank:
            tensors |= _tensors(names, module, attached.name)
            if len(names.places[module]) > 1:
                fused[module] = [term.rank if term else 0 for term in terms_by_place(names, module, attached.name)]
    own = _own(attached)
    config |= {"peft_type": "LORA"} if low_rank else {"peft_type": kind_of(attached.method).upper(), "luthier": asdict(attached.method)}
    if low_rank:  # what only shares a parameter with the module that uses it (BERT's decoder bias) is not a module of its own
        own = {(path, name): value for (path, name), value in own.items() if not list(attached.anatomy.at(path).module.children())}
    stored = names.export(own, whole=bool(low_rank))
    config |= _beside(attached, names, stored, low_rank.keys()) if low_rank else {}
    tensors |= stored | _rows(attached, names)
    config |= _token_indices(attached, names)
    state = {"method": json.dumps({"kind": kind_of(attached.method)} | asdict(attached.method)), "fused": json.dumps(fused)}
    state["tokens"] = json.dumps(list(attached.anatomy.grown.values()))
    state["heads"] = json.dumps(
        {kind: len(head.out.weight) for kind, head in attached.anatomy.task_heads().items() if isinstance(head, LabelHead)}
    )

    def fill(place: Path) -> None:
        write_json(place / CONFIG, dict(sorted(config.items())))
        write_safetensors(place / WEIGHTS, {PREFIX + name: value.detach().cpu() for name, value in tensors.items()})
        write_safetensors(place / STATE, {}, state)
        if attached.anatomy.grown and attached.tokenizer is not None:
            attached.tokenizer.save(place)

    replace_folder(directory, fill, sum(value.nbytes for value in tensors.values()))


def kind_of(method: Any) -> str:
    """The name of a method's file."""
    return type(method).__module__.rpartition(".")[2]


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


def _lora(attached: Attached, names: Names, low_rank: dict[str, list[LowRank]]) -> dict[str, Any]:
    method = asdict(attached.method)
    rank, alpha, rslora = method["rank"], method["alpha"], method["rslora"]
    ranks = {module: sum(term.rank for term in terms) for module, terms in low_rank.items()}
    alphas = {module: _round(_scale(terms) * (ranks[module] ** (0.5 if rslora else 1))) for module, terms in low_rank.items()}
    return {
        "r": rank, "lora_alpha": _round(alpha), "lora_dropout": method["dropout"], "use_rslora": rslora,
        "rank_pattern": patterns(ranks, rank), "alpha_pattern": patterns(alphas, _round(alpha)), "bias": "none", "use_dora": False,
        "fan_in_fan_out": any(names.fan_in_fan_out(module) for module in low_rank), "init_lora_weights": method["start"] != "gaussian" or "gaussian",
        "alora_invocation_tokens": None, "arrow_config": None, "corda_config": None, "eva_config": None, "exclude_modules": None,
        "kasa_config": None, "layer_replication": None, "layers_pattern": None, "loftq_config": {}, "lora_bias": False, "lora_ga_config": None,
        "megatron_config": None, "megatron_core": "megatron.core", "monteclora_config": None, "qalora_group_size": 16, "target_parameters": None,
        "use_bdlora": None, "use_qalora": False, "velora_config": None, "trainable_token_indices": None, "ensure_weight_tying": False,
    }  # fmt: skip


def _beside(attached: Attached, names: Names, stored: dict[str, Tensor], modules: Any) -> dict[str, Any]:
    """modules_to_save, and which modules the low-rank terms are around."""
    saved = sorted({name.rpartition(".")[0] for name in stored})
    both = sorted(set(saved) & set(modules))
    if both:
        raise ValueError(f"{', '.join(both)} holds a part that trains whole and one with low-rank terms, which peft's format cannot say")
    config: dict[str, Any] = {"modules_to_save": saved or None}
    body = attached.anatomy
    tied = [names.stored(site.path, name).path for site, name in body.owners(body.embed.module.weight)]  # type: ignore[arg-type]
    # peft ties a head to embed_tokens alone, and gives it no bias
    if (
        set(tied) <= stored.keys()
        and sorted(name.split(".")[-2] for name in tied) == ["embed_tokens", "lm_head"]
        and "lm_head.bias" not in stored
    ):
        config["ensure_weight_tying"] = True
        config["modules_to_save"] = [name for name in saved if name != "lm_head"]
    around = {module for module in modules if names.places[module][0].site.layer < 0}
    return config | choose(set(modules), names.everything(), config, around)


def terms_by_place(names: Names, module: str, name: str) -> list[LowRank | None]:
    found = [place.site.adapter(name) for place in names.places[module]]
    return [adapter if isinstance(adapter, LowRank) else None for adapter in found]


def _terms(names: Names, module: str, name: str) -> list[LowRank]:
    return [term for term in terms_by_place(names, module, name) if term is not None]


def _scale(terms: list[LowRank]) -> float:
    return terms[0].scale


def _tensors(names: Names, module: str, name: str) -> dict[str, Tensor]:
    terms = _terms(names, module, name)
    if isinstance(terms[0], LowRankEmbedding):
        return {f"{module}.lora_embedding_A": terms[0].a_RI, f"{module}.lora_embedding_B": terms[0].b_OR}
    if len(names.places[module]) == 1:
        return {f"{module}.lora_A.weight": terms[0].a_RI, f"{module}.lora_B.weight": terms[0].b_OR}
    b_OR = terms[0].b_OR.new_zeros(names.total(module), sum(term.rank for term in terms))
    column = 0
    for place, term in zip(names.places[module], terms_by_place(names, module, name), strict=True):
        if term is not None and place.rows is not None:
            block = term.b_OR.detach() * (term.scale / _scale(terms))
            b_OR[place.rows.to(b_OR.device), column : column + term.rank] = block
            column += term.rank
    return {f"{module}.lora_A.weight": torch.cat([term.a_RI for term in terms]), f"{module}.lora_B.weight": b_OR}


def _own(attached: Attached) -> dict[tuple[str, str], Tensor]:
    """Parameters with values of their own under this adapter, as their modules store them."""
    own: dict[tuple[str, str], Tensor] = {}
    for path, around in attached.anatomy.arounds():
        if attached.name in around.adapters and _is_own(around, attached.name):
            own |= {(path, name): value.detach() for name, value in around.merged((attached.name,)).items()}
    return own


def _is_own(around: Around, name: str) -> bool:
    adapter = around.adapters[name]
    parts: list[Adapter] = [part for _, part in adapter.items()] if isinstance(adapter, OnRows) else [adapter]  # type: ignore[list-item]
    return all(isinstance(part, Own) for part in parts)


def _rows(attached: Attached, names: Names) -> dict[str, Tensor]:
    """Added tokens' vectors. A tied head's are the embedding's and are not written twice, as in peft."""
    return {f"{module}{DELTA}": rows.rows_KD for module, rows in _new_rows(attached, names)}


def _token_indices(attached: Attached, names: Names) -> dict[str, Any]:
    indices = {module: rows.get_buffer("ids_K").tolist() for module, rows in _new_rows(attached, names)}
    return {"trainable_token_indices": indices} if indices else {}


def _new_rows(attached: Attached, names: Names) -> list[tuple[str, NewRows]]:
    body = attached.anatomy
    sites = [body.embed] + ([body.head] if body.has("head") and not body.tied else [])
    found = [(names.module(site), site.adapter(attached.name)) for site in sites]
    return [(module, adapter) for module, adapter in found if isinstance(adapter, NewRows)]


def _round(value: float) -> float | int:
    return round(value) if abs(value - round(value)) < 1e-9 else value
