"""A model back to Hugging Face's form, whole or not at all: written beside its place, flushed to the disk, then renamed."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.merge import same
from luthier.anatomy.site import bare, resolve
from luthier.anatomy.table import key_of, values_of
from luthier.core.heads import PRETRAINING
from luthier.core.names import export_state
from luthier.core.transformer import Transformer
from luthier.sources._match import HEADS, labels_of
from luthier.sources.directory import INDEX, SINGLE
from luthier.sources.foreign import Foreign
from luthier.sources.model import Model
from luthier.sources.tensor_files import write_safetensors

SHARD_BYTES = 5 * 10**9
OURS = ("config.json", SINGLE, INDEX, "generation_config.json")  # what a saved model replaces, with its shards


def save_model(model: Model, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Replaces what stood in `folder`. OSError, with what was there before left whole, where the disk does not take it."""
    if isinstance(model.net, Foreign):
        module: Any = model.net.module
        state = plain_parameters(model.anatomy)
        write = lambda place: module.save_pretrained(place, state_dict=state, max_shard_size=shard_bytes)  # noqa: E731
        size = sum(tensor.nbytes for tensor in state.values())
    elif hasattr(getattr(model.net, "config", None), "to_config"):  # an architecture of ours; a net that reads another's states has none
        config, tensors = hugging_face(model, cast(Transformer, model.net))
        write = lambda place: write_model(place, config, tensors, shard_bytes)  # noqa: E731
        size = sum(tensor.nbytes for tensor in tensors.values())
    else:
        raise ValueError(f"{type(model.net).__name__} cannot be saved in Hugging Face's form")
    replace_folder(folder, lambda place: (write(place), write_text(model, place)), size)


def hugging_face(model: Model, net: Transformer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors by their published names."""
    heads, table = labels_of(net), model.anatomy.embed.parameters.get("weight") if model.anatomy.has("embed") else None
    vocab = net.vocab if table is None else table.shape[0]  # an adaptive embedding has several tables
    config = (replace(net.config, vocab=vocab) if hasattr(net.config, "vocab") else net.config).saved()
    config = replace(config, **{kind: kind in heads for kind in ("lm", *PRETRAINING) if hasattr(config, kind)})
    table, state = config.names(heads), plain_parameters(model.anatomy)
    written = config.to_config() | special_ids(model) | label_settings(config.to_config(), heads)
    if hasattr(config, "pad"):
        written["pad_token_id"] = config.pad  # positions are counted from behind it, whatever the tokenizer pads with
    written["torch_dtype"] = written["dtype"] = str(model.dtype).removeprefix("torch.")
    tensors = export_state(table, {ours: state[ours] for ours in table})
    if written["architectures"][0] in [f"{name}ForQuestionAnswering" for name in ("Llama", "Qwen2", "Qwen3")]:  # they alone call it so
        tensors = {name.replace("model.", "transformer.", 1) if name.startswith("model.") else name: t for name, t in tensors.items()}
    return written, tensors


def special_ids(model: Model) -> dict[str, int]:
    found = {} if model.tokenizer is None else {role: getattr(model.tokenizer, role) for role in ("bos", "eos", "pad")}
    return {f"{role}_token_id": id for role, id in found.items() if id is not None}


def label_settings(config: Mapping[str, Any], heads: Mapping[str, int]) -> dict[str, Any]:
    """What config.json says of a label head: the class that has it, and how many labels."""
    suffixes = {head: suffix for suffix, head in HEADS.items()} | {"regress": "ForSequenceClassification"}
    kind = next((kind for kind in suffixes if kind in heads), None)
    if kind is None:
        return {}
    stem = config["architectures"][0]
    if "image_size" in config:
        suffixes |= dict.fromkeys(("classify", "regress"), "ForImageClassification")
    if kind == "choose" and stem.endswith("LMHeadModel"):
        suffixes[kind] = "DoubleHeadsModel"
    if kind == "spans" and stem.startswith("XLNet"):
        suffixes[kind] = "ForQuestionAnsweringSimple"
    for end in (
        "ForConditionalGeneration",
        "MTModel",
        "ForCausalLM",
        "ForMaskedLM",
        "ForPreTraining",
        "ForNextSentencePrediction",
        "LMHeadModel",
        "Model",
    ):
        stem = stem.removesuffix(end)
    names = {str(i): f"LABEL_{i}" for i in range(heads[kind])}
    settings = {"architectures": [stem + suffixes[kind]], "id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
    return settings | ({"problem_type": "regression"} if kind == "regress" else {})


def plain_parameters(anatomy: Anatomy) -> dict[str, Tensor]:
    """Every parameter by its name without adapters, tied ones under all their names, the adapters at work folded in."""
    root, names = anatomy.root, anatomy.active
    changed: dict[int, Tensor] = {}
    for path, around in anatomy.arounds():
        with torch.no_grad():
            values = around.merged(names)
        for name, value in values.items():
            parameter = around.base._parameters.get(name)  # a quantised weight is none, and nobody else's
            others = [site for site, _ in anatomy.owners(parameter) if site.path != path] if parameter is not None else []
            if any(site.around is None or not same(site.around.merged(names).get(name), value) for site in others):
                raise ValueError(
                    f"{path}.{name} is tied to {others[0].path} and an adapter changes one of them only, which one file cannot hold; "
                    "save the adapter instead (save_adapter)"
                )
            changed[key_of(around.base, name)] = value
    state = {}
    for path, owner in every_module(root):
        for name, parameter in values_of(owner).items():
            state[f"{path}.{name}" if path else name] = changed.get(key_of(owner, name), parameter).detach()
    return state | {name: buffer for name, buffer in anatomy.state().items() if name not in state}


def every_module(root: nn.Module, path: str = "") -> list[tuple[str, nn.Module]]:
    """(path, module) as if no adapters were there; a module that stands in two places comes twice."""
    module = bare(resolve(root, path)) if path else bare(root)
    found = [(path, module)]
    for name in module._modules:
        if module._modules[name] is not None:
            found += every_module(root, f"{path}.{name}" if path else name)
    return found


def write_model(place: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    write_json(place / "config.json", config)
    shards = divide(tensors, shard_bytes)
    if len(shards) == 1:
        write_safetensors(place / SINGLE, tensors)
        return
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, names in zip(files, shards, strict=True):
        write_safetensors(place / file, {name: tensors[name] for name in names})
    index = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    write_json(place / INDEX, {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": index})


def divide(tensors: Mapping[str, Tensor], most: int) -> list[list[str]]:
    """Names in order, in groups of at most so many bytes."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def write_text(model: Model, place: Path) -> None:
    """The tokenizer's files and the chat template."""
    if model.tokenizer is not None:
        model.tokenizer.save(place)
    if model.template is not None:
        (place / "chat_template.jinja").write_text(model.template.source, encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def replace_folder(folder: Path, fill: Callable[[Path], object], size: int = 0) -> None:
    """`fill` writes into a hidden folder, which then takes the place of `folder`; other files that stood there stay."""
    folder = folder.expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder to save into")
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise OSError(f"{folder}: the model needs {size / 1e9:.1f} GB and the disk has {free / 1e9:.1f}; nothing was changed")
    partial, old = folder.with_name(f".{folder.name}.partial-{os.getpid()}"), folder.with_name(f".{folder.name}.old-{os.getpid()}")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        fill(partial)
        flush(partial)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        reason = error.strerror or str(error)
        raise OSError(f"{folder} could not be written ({reason}); what was there before is untouched. Make room and save again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if old.exists():
        keep_others(old, folder)


def flush(folder: Path) -> None:
    """Waits until every file, and the folder itself, is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def keep_others(old: Path, folder: Path) -> None:
    """Moves what no model is made of (notes, logs, another tool's files) to the new folder, and removes the old one."""
    for path in old.iterdir():
        weights = path.name in OURS or (path.name.startswith("model-") and path.suffix == ".safetensors")
        if not weights and not (folder / path.name).exists():
            path.rename(folder / path.name)
    shutil.rmtree(old)
