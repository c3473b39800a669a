"""Low-rank terms in peft's LoRA format.

Several low-rank terms on one fused projection become one of the ranks' sum, block-diagonal in B, with alpha set so that the scale stays.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from luthier.tuning._attached import Attached
from luthier.tuning._lowrank import Decomposed, LowRank, LowRankEmbedding, term_of
from luthier.tuning._match import choose, patterns
from luthier.tuning._names import Names
from luthier.tuning._stored import Written, own_values


def lora(attached: Attached, names: Names) -> Written:
    """Low-rank terms, and beside them the modules that train whole."""
    tensors: dict[str, Tensor] = {}
    fused: dict[str, list[int]] = {}
    scales: dict[str, list[float]] = {}
    low_rank = {module: terms for module in names.places if (terms := _terms(names, module, attached.name))}
    for module in low_rank:
        tensors |= _tensors(names, module, attached.name)
        if len(names.places[module]) > 1:
            fused[module] = [len(term.factors()[0]) if term else 0 for term in terms_by_place(names, module, attached.name)]
            scales[module] = [term.scale if term else 0.0 for term in terms_by_place(names, module, attached.name)]
    stored = beside(attached, names)
    config = {"peft_type": "LORA"} | _lora(attached, names, low_rank) | whole_modules(attached, names, stored, low_rank.keys())
    outside = {module for module in low_rank if names.places[module][0].site.layer < 0}
    config |= choose(set(low_rank), names.everything(), config, outside)
    return Written(config, tensors | stored, notes={"fused": fused, "scales": scales})


def beside(attached: Attached, names: Names) -> dict[str, Tensor]:
    """The modules that train whole."""
    return names.export(_own(attached), whole=True)


def filled(attached: Attached, names: Names) -> list[str]:
    """What is written only because its module is: it does not train."""
    return sorted(names.export(_own(attached), whole=True).keys() - names.export(own_values(attached), whole=False).keys())


def _own(attached: Attached) -> dict[tuple[str, str], Tensor]:
    """What only shares a parameter with the module that uses it (BERT's decoder bias) is none of its own."""
    own = own_values(attached)
    return {(path, name): value for (path, name), value in own.items() if not list(attached.anatomy.at(path).module.children())}


def _lora(attached: Attached, names: Names, low_rank: dict[str, list[LowRank]]) -> dict[str, Any]:
    method = asdict(attached.method)
    rank, alpha, rslora = method["rank"], method["alpha"], method["rslora"]
    if method["start"] == "pissa":  # twice the rank at the same scale
        rank, alpha = 2 * rank, alpha * (2**0.5 if rslora else 2)
    ranks = {module: sum(len(term.factors()[0]) for term in terms) for module, terms in low_rank.items()}
    alphas = {module: _round(_scale(terms) * (ranks[module] ** (0.5 if rslora else 1))) for module, terms in low_rank.items()}
    return {
        "r": rank, "lora_alpha": _round(alpha), "lora_dropout": method["dropout"], "use_rslora": rslora,
        "rank_pattern": patterns(ranks, rank), "alpha_pattern": patterns(alphas, _round(alpha)), "bias": "none", "use_dora": method.get("dora", False),
        "fan_in_fan_out": any(names.fan_in_fan_out(module) for module in low_rank), "init_lora_weights": method["start"] != "gaussian" or "gaussian",
        "alora_invocation_tokens": None, "arrow_config": None, "corda_config": None, "eva_config": None, "exclude_modules": None,
        "kasa_config": None, "layer_replication": None, "layers_pattern": None, "loftq_config": {}, "lora_bias": False, "lora_ga_config": None,
        "megatron_config": None, "megatron_core": "megatron.core", "monteclora_config": None, "qalora_group_size": 16, "target_parameters": None,
        "use_bdlora": None, "use_qalora": False, "velora_config": None, "trainable_token_indices": None, "ensure_weight_tying": False,
    }  # fmt: skip


def whole_modules(attached: Attached, names: Names, stored: dict[str, Tensor], modules: Iterable[str], ties: bool = True) -> dict[str, Any]:
    """modules_to_save. ties: whether this method's peft can tie the saved embedding and head."""
    saved = sorted({name.rpartition(".")[0] for name in stored})
    both = sorted(set(saved) & set(modules))
    if both:
        raise ValueError(f"{', '.join(both)} holds a part that trains whole and one with low-rank terms, which peft's format cannot say")
    config: dict[str, Any] = {"modules_to_save": saved or None}
    body = attached.anatomy
    tied = [names.stored(site.path, name).path for site, name in body.owners(body.embed.module.weight)]  # type: ignore[arg-type]
    if not ties:
        return config
    # peft ties a head to embed_tokens alone, and gives it no bias
    if (
        set(tied) <= stored.keys()
        and sorted(name.split(".")[-2] for name in tied) == ["embed_tokens", "lm_head"]
        and "lm_head.bias" not in stored
    ):
        config["ensure_weight_tying"] = True
        config["modules_to_save"] = [name for name in saved if name != "lm_head"]
    return config


def terms_by_place(names: Names, module: str, name: str) -> list[LowRank | None]:
    return [term_of(place.site.adapter(name)) for place in names.places[module]]


def _terms(names: Names, module: str, name: str) -> list[LowRank]:
    return [term for term in terms_by_place(names, module, name) if term is not None]


def _scale(terms: list[LowRank]) -> float:
    return terms[0].scale


def _tensors(names: Names, module: str, name: str) -> dict[str, Tensor]:
    terms = _terms(names, module, name)
    magnitude = _magnitude(names, module, name)
    if isinstance(terms[0], LowRankEmbedding):
        return {f"{module}.lora_embedding_A": terms[0].a_RI, f"{module}.lora_embedding_B": terms[0].b_OR} | magnitude
    if len(names.places[module]) == 1:
        a_RI, b_OR = terms[0].factors()
        return {f"{module}.lora_A.weight": a_RI, f"{module}.lora_B.weight": b_OR} | magnitude
    all_a = torch.cat([term.factors()[0] for term in terms])
    b_OR = all_a.new_zeros(names.total(module), len(all_a))
    column = 0
    for place, term in zip(names.places[module], terms_by_place(names, module, name), strict=True):
        if term is not None and place.rows is not None:
            block = term.factors()[1].detach() * (term.scale / _scale(terms))
            b_OR[place.rows.to(b_OR.device), column : column + block.shape[1]] = block
            column += block.shape[1]
    return {f"{module}.lora_A.weight": all_a, f"{module}.lora_B.weight": b_OR} | magnitude


def _magnitude(names: Names, module: str, name: str) -> dict[str, Tensor]:
    """DoRA's; rows of a fused projection without one keep their own norm."""
    places = names.places[module]
    found = [(place, adapter) for place in places if isinstance(adapter := place.site.adapter(name), Decomposed)]
    if not found:
        return {}
    if len(places) == 1:
        return {f"{module}.lora_magnitude_vector": found[0][1].magnitude}
    whole = found[0][1].magnitude.detach().new_zeros(names.total(module))
    for place in places:
        whole[place.rows] = place.site.weight.detach().norm(dim=1).to(whole.dtype)
    for place, adapter in found:
        whole[place.rows] = adapter.magnitude.detach()
    return {f"{module}.lora_magnitude_vector": whole}


def _round(value: float) -> float | int:
    return round(value) if abs(value - round(value)) < 1e-9 else value
