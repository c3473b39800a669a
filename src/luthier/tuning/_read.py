"""Read an adapter's folder: peft's LoRA as peft writes it, and our own kinds, onto our models and transformers models alike.

Every tensor must find its place and every place its tensor, or nothing is changed. A setting that is not known here and is not at its
default is refused, because it would change what the adapter computes.
"""

from pathlib import Path
from typing import Any

from luthier.anatomy.anatomy import Anatomy
from luthier.config import build_plug_in
from luthier.core.transformer import Transformer
from luthier.sources.directory import read_json
from luthier.sources.model import Model
from luthier.sources.run_folder import COMPOSITION
from luthier.tuning._adapters import ReadLibrary
from luthier.tuning._attached import Attached
from luthier.tuning._compose import compose
from luthier.tuning._composition import tree
from luthier.tuning._folder import Folder
from luthier.tuning._names import Names
from luthier.tuning._peft_adalora import ReadAdaLoRA
from luthier.tuning._peft_ia3 import ReadIA3
from luthier.tuning._peft_prefix import ReadPrefix
from luthier.tuning._peft_prompt import ReadPrompt
from luthier.tuning._read_lora import ReadLoRA
from luthier.tuning._reading import Reading, ReadPlain
from luthier.tuning._stored import adapters, kind_of
from luthier.tuning._vocabulary import grow

FORMATS: dict[str, type[Reading]] = {
    "lora": ReadLoRA,
    "ia3": ReadIA3,
    "adalora": ReadAdaLoRA,
    "prefix": ReadPrefix,
    "p_tuning_v2": ReadPrefix,
    "prompt": ReadPrompt,
    "p_tuning": ReadPrompt,
}  # kind of method -> how peft's files of it are read


def read(anatomy: Anatomy, directory: Path, name: str = "default", trainable: bool = False) -> Attached:
    """Attach the adapter saved in a folder and put it to work. ValueError in words where it does not fit; the model is then as it was."""
    if (directory / COMPOSITION).is_file():
        return read_composition(anatomy, directory, name, trainable)
    folder = Folder(directory)
    folder.kind  # noqa: B018  refused before anything is touched
    form = ReadLibrary if folder.library else ReadPlain if "luthier" in folder.config else FORMATS[folder.kind]
    try:
        attached = form(Names(anatomy), folder, name, trainable).attached()
    except BaseException:
        anatomy.remove(name)
        raise
    if trainable:
        anatomy.net.requires_grad_(False)
    for parameter in attached.parameters.values():
        parameter.requires_grad_(trainable)
    attached.source = str(folder.config.get("base_model_name_or_path") or "")
    anatomy.activate(name)
    return attached


def read_composition(anatomy: Anatomy, directory: Path, name: str, trainable: bool) -> Attached:
    """`read` for several adapters that are one."""
    record = read_json(directory / COMPOSITION)
    missing = [label for label in record["members"] if not (directory / label).is_dir()]
    if missing:
        raise FileNotFoundError(f"{directory}: {COMPOSITION} names {', '.join(missing)}, and there is no such folder in it")
    active = anatomy.switch.default

    def member(method: Any, label: str, own: str) -> Attached:
        if kind_of(method) == "adapter_fusion" and label.startswith("fuse"):  # over members that have just come
            fused = method.attach(anatomy, own)
            names = Names(anatomy)
            ReadPlain(names, Folder(directory / label), own, trainable).fill(adapters(names, own))
            return fused
        return read(anatomy, directory / label, own, trainable)

    try:
        attached = compose(
            anatomy, tree(record["tuning"]), name, member, build_plug_in("tuning", record["method"]) if "method" in record else None
        )
    finally:
        anatomy.switch.default = active
    if trainable:
        anatomy.net.requires_grad_(False)
    for parameter in attached.parameters.values():
        parameter.requires_grad_(trainable)
    attached.source = str(record.get("base_model_name_or_path") or "")
    anatomy.activate(name)
    return attached


def folders_of(directory: Path) -> list[Folder]:
    """The adapter's folder; of a composition, its members'."""
    if not (directory / COMPOSITION).is_file():
        return [Folder(directory)]
    return [folder for label in read_json(directory / COMPOSITION)["members"] for folder in folders_of(directory / label)]


def load_adapter(model: Model, directory: str | Path, name: str = "default", trainable: bool = False) -> Attached:
    """`read` for a Model: tokens that the adapter has added are added to its tokenizer and vocabulary first, and the task heads it brings."""
    folders = folders_of(Path(directory))
    tokens = dict.fromkeys(token for folder in folders for token in folder.tokens)
    missing = [token for token in tokens if model.tokenizer is None or model.tokenizer.id(token) is None]
    if missing:
        grow(model, missing)
    heads = {kind: labels for folder in folders for kind, labels in folder.heads.items()} if isinstance(model.net, Transformer) else {}
    fresh = {kind: labels for kind, labels in heads.items() if kind not in model.net.heads}
    for kind, labels in fresh.items():
        model.net.add_head(kind, labels)
    try:
        attached = read(model.anatomy, Path(directory), name, trainable)
    except BaseException:
        for kind in fresh:
            del model.net.heads[kind]
        raise
    attached.source, attached.tokenizer = model.source, model.tokenizer
    model.attached = attached
    return attached
