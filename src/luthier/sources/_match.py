"""Which architecture a checkpoint is of, and whether every tensor it needs is there, in the right shape, and no other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from luthier.core.adaptive import AdaptiveSoftmax
from luthier.core.names import Name
from luthier.core.transformer import Transformer
from luthier.lookup import describe, find, lookup, names, suggest
from luthier.models._config import check_fields
from luthier.sources._meta import on_meta
from luthier.sources.checkpoint import Checkpoint, some

# The end of config.json's architectures entry -> the head it stands for.
HEADS = {
    "ForImageClassification": "classify",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "tag",
    "ForQuestionAnsweringSimple": "spans",  # XLNet's: its ForQuestionAnswering searches for the end with a beam
    "ForQuestionAnswering": "spans",
    "DoubleHeadsModel": "choose",  # GPT's, beside its language-model head
    "ForMultipleChoice": "choose",
}


@dataclass(frozen=True)
class Match:
    """A net on the meta device and, for each of its parameters, where the checkpoint holds it."""

    net: Transformer
    table: dict[str, Name]  # our parameter -> canonical name and rows
    stored: dict[str, str]  # canonical name -> name in the file


def architecture(config: Mapping[str, Any], where: str) -> type:
    """The model dataclass that reads this config.json, found by its model_type without importing the others."""
    kind = config.get("luthier", config.get("model_type"))  # a model of ours that others read as a plainer one says so
    if not isinstance(kind, str):
        raise ValueError(
            f"{where}: config.json has no model_type, so nobody can say what model this is; take the file that came with the weights"
        )
    named = [arch for arch in names("models") if repr(kind)[1:-1] in find("models", arch).read_text(encoding="utf-8")]  # to read few
    types = _types(named)
    if kind not in types:
        raise ValueError(
            f"{where}: config.json says model_type {kind!r}, which Luthier has no file for{suggest(kind, _types(names('models')))}. "
            "Load it with transformers and pass the model object to luthier.load"
        )
    return lookup("models", types[kind])


def _types(archs: list[str]) -> dict[str, str]:
    """model_type -> architecture, read from their sources."""
    return {each: arch for arch in archs for each in describe("models", arch).constants.get("types", ())}


def match(checkpoint: Checkpoint) -> Match:
    """Compares names and shapes of everything before a single value is read; ValueError names all that does not fit."""
    arch, where = architecture(checkpoint.config, checkpoint.name), checkpoint.name
    try:
        config = arch.from_config(checkpoint.config)
        check_fields(config)
        sizes = {key: getattr(config, key) for key in ("vocab", "width", "layers", "heads", "hidden") if hasattr(config, key)}
        wrong = [f"{key}={value!r}" for key, value in sizes.items() if not isinstance(value, int) or value < 0]
        if wrong or (config.layers > len(checkpoint.tensors) and not hasattr(config, "share")):  # layers may share their tensors
            raise ValueError(
                f"it asks for {', '.join(wrong) or f'{config.layers} layers, and there are {len(checkpoint.tensors)} tensors'}"
            )
        stored = canonical(config, checkpoint)
        config = config.fit(set(stored))
        with on_meta():
            net = config.build()
    except (TypeError, ZeroDivisionError, AssertionError, RuntimeError) as error:
        raise ValueError(f"{where}: config.json describes a model that cannot be built ({error})") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    add_heads(net, checkpoint, stored)
    table = config.names(labels_of(net))
    drop_tied_copy(net, table, checkpoint, stored)
    compare(net, table, checkpoint, stored)
    return Match(net, table, stored)


def canonical(config: Any, checkpoint: Checkpoint) -> dict[str, str]:
    """Canonical name -> stored name, without the buffers that nobody needs."""
    pairs = [(config.aliases(name), name) for name in checkpoint.tensors]
    stored = {ours: name for ours, name in pairs if ours is not None}
    twice = sorted(name for ours, name in pairs if ours is not None and stored[ours] != name)
    if twice:
        raise ValueError(f"two of its tensors are the same one under two names: {some(twice)}")
    return stored


def add_heads(net: Transformer, checkpoint: Checkpoint, stored: dict[str, str]) -> None:
    """The label head that config.json names, as many labels as its tensor has rows."""
    (kind, *_) = [*(checkpoint.config.get("architectures") or []), ""]
    suffix = next((suffix for suffix in HEADS if str(kind).endswith(suffix)), None)
    if suffix is None:
        return
    own = {name.path for name in net.config.names({"lm": 0}).values()} - {name.path for name in net.config.names({}).values()}
    if "lm" in net.heads and not (own | {"lm_head.weight"}) & stored.keys() and not checkpoint.config.get("tie_word_embeddings"):
        del net.heads["lm"]
    head = HEADS[suffix]
    if head == "classify" and checkpoint.config.get("problem_type") == "regression":
        head = "regress"
    path = net.config.names({head: 1})[f"heads.{head}.out.weight"].path
    if path not in stored:
        raise ValueError(f"{checkpoint.name}: config.json says {kind}, but the tensor {path!r} of its head is missing")
    with on_meta():
        net.add_head(head, checkpoint.tensors.specs[stored[path]].shape[0])


def labels_of(net: Transformer) -> dict[str, int]:
    """Every head of the net with its labels (vocabulary entries, for the language-model head)."""
    outs = {kind: head.out for kind, head in net.heads.items()}
    return {kind: out.out_features if isinstance(out, AdaptiveSoftmax) else out.weight.shape[0] for kind, out in outs.items()}  # type: ignore[union-attr, misc]


def drop_tied_copy(net: Transformer, table: dict[str, Name], checkpoint: Checkpoint, stored: dict[str, str]) -> None:
    """Some files hold the tied output matrix a second time. Equal: forgotten. Different: the file contradicts its config."""
    extra = "lm_head.weight"
    if extra not in stored or "lm" not in net.heads or extra in {name.path for name in table.values()}:
        return
    embed = table["embed.token.weight"].path
    if embed not in stored:  # the one matrix, under the other name
        stored[embed] = stored.pop(extra)
        return
    inner, outer = stored[embed], stored[extra]
    if checkpoint.tensors.specs[inner] != checkpoint.tensors.specs[outer] or not torch.equal(
        checkpoint.tensors[inner], checkpoint.tensors[outer]
    ):
        raise ValueError(
            f"{checkpoint.name}: config.json ties the output matrix to the embedding (tie_word_embeddings), but {outer!r} differs from it; "
            "set tie_word_embeddings to false in config.json"
        )
    del stored[extra]


def compare(net: Transformer, table: dict[str, Name], checkpoint: Checkpoint, stored: dict[str, str]) -> None:
    wanted = stored_shapes(net, table)
    missing, unexpected = sorted(wanted.keys() - stored.keys()), sorted(stored[name] for name in stored.keys() - wanted.keys())
    specs = checkpoint.tensors.specs
    other = [
        f"{stored[name]} is {specs[stored[name]].shape} and should be {shape}"
        for name, shape in wanted.items()
        if name in stored and specs[stored[name]].shape != shape
    ]
    facts = [
        f"{len(missing)} tensors are missing: {some(missing)}" if missing else "",
        f"{len(unexpected)} tensors are not of this architecture: {some(unexpected)}" if unexpected else "",
        f"{len(other)} shapes are not those of config.json: {some(other, 3)}" if other else "",
    ]
    if any(facts):
        raise ValueError(
            f"{checkpoint.name} does not fit its config ({checkpoint.config.get('model_type')}): {'; '.join(filter(None, facts))}. "
            "Take config.json and weights of one and the same model"
        )


def stored_shapes(net: Transformer, table: dict[str, Name]) -> dict[str, tuple[int, ...]]:
    """The shape every stored tensor must have: parts of a fused one put together, transposed ones turned."""
    parameters = dict(net.named_parameters(remove_duplicate=False))
    rows: dict[str, int] = {}
    rest: dict[str, tuple[tuple[int, ...], bool]] = {}
    for ours, name in table.items():
        shape = tuple(parameters[ours].shape)
        last = name.index(shape[0])
        rows[name.path] = max(rows.get(name.path, 0), shape[0] if last is None else int(last[-1]) + 1)
        rest[name.path] = (shape[1:], name.transposed)
    shapes = {path: (rows[path], *others) for path, (others, _) in rest.items()}
    split = {name.path: name.shape for name in table.values() if name.shape is not None}
    return {path: split.get(path) or (shape[::-1] if rest[path][1] else shape) for path, shape in shapes.items()}
