"""From a source to a model in memory: built on the meta device, then given the checkpoint's tensors without a second copy."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.config import build
from luthier.core.names import Name, import_tensor
from luthier.core.transformer import Transformer
from luthier.lookup import lookup, suggest
from luthier.models._config import check_fields
from luthier.sources._match import Match, match
from luthier.sources.checkpoint import Checkpoint, template_of
from luthier.sources.directory import read_tokenizer
from luthier.sources.model import Model
from luthier.sources.open import locate, open_checkpoint
from luthier.sources.run_folder import drawn_again, resolve

if TYPE_CHECKING:
    from luthier.data.tokenizer import Tokenizer

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16, "float64": torch.float64, "fp64": torch.float64,
}  # fmt: skip
STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PARTS = {"start": "blip2", "eyes": "minigpt4", "voice": "minigpt4"}  # sources of trained parts, and which architecture takes them
Attach = Callable[[Model, Path], object]


def load_model(
    source: Any, dtype: torch.dtype | str | None = None, device: str | torch.device = "cpu", attach: Attach | None = None
) -> Model:
    """A model in evaluation mode.

    source: a folder in Hugging Face's form, a .gguf file, pkg://package/path, hub://org/name, a run or adapter folder, a mapping
    {arch: llama, width: 256, ..., tokenizer: folder} for fresh weights, or a transformers model object. dtype: a torch dtype or its
    name; None keeps what is stored (float32 for GGUF). attach: what loads an adapter's folder onto its base, for folders that hold one.
    """
    wanted = dtype_of(dtype)
    if isinstance(source, Mapping):
        return fresh(source, wanted, device)
    if not isinstance(source, str | Path):
        from luthier.sources.foreign import wrap

        return wrap(source, wanted, device)
    base, adapter = resolve(source)
    if adapter is not None:
        if attach is None:
            raise ValueError(f"{source} holds an adapter, not a whole model; load it with luthier.load, or its base {base} without it")
        with drawn_again(Path(source).expanduser()) if isinstance(base, Mapping) else nullcontext():
            model = load_model(base, wanted, device, attach)
        if model.attached is not None:  # the base is another run's adapter on its own: the run started from both
            model.merge()
        attach(model, adapter)
        model.source = str(source)
        return model
    assert not isinstance(base, dict), "fresh weights need an adapter's folder to come from one"
    checkpoint = open_checkpoint(base)
    net = load_net(checkpoint, wanted).to(device).eval()
    return spelled(Model(net, checkpoint.tokenizer, checkpoint.template, str(source)))


def spelled(model: Model) -> Model:
    """Told how its words are written, where it reads them by their characters: as the tokenizer writes its entries."""
    if model.net.spells and model.tokenizer is not None:
        ids = range(model.tokenizer.vocab)
        model.net.learn_words([model.tokenizer.decode([id]).strip() or model.tokenizer.token(id) for id in ids])  # type: ignore[operator]
    return model


def dtype_of(name: torch.dtype | str | None) -> torch.dtype | None:
    if name is None or isinstance(name, torch.dtype):
        return name
    key = str(name).removeprefix("torch.")
    if key not in DTYPES:
        raise ValueError(f"no dtype called {name!r}{suggest(key, DTYPES)}")
    return DTYPES[key]


def load_net(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> Transformer:
    """The net of a checkpoint with its weights."""
    found = match(checkpoint)
    dtype = dtype or stored_dtype(checkpoint)
    assign(found.net, read_all(found, checkpoint, dtype))
    restore_tables(found.net)
    return found.net


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The type most of the weights are stored in; float32 where they are quantised or it came from GGUF."""
    sizes: dict[str, int] = {}
    for spec in checkpoint.tensors.specs.values():
        sizes[spec.kind] = sizes.get(spec.kind, 0) + spec.bytes
    kind = max(sizes, key=lambda kind: sizes[kind], default="F32")
    return torch.float32 if str(checkpoint.name).endswith(".gguf") else STORED.get(kind, torch.float32)


def read_all(found: Match, checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Tensor]:
    """Our parameters by name; each stored tensor is read once, however many of ours it holds."""

    def read(stored: str) -> Tensor:
        return finite(checkpoint.tensors.read(stored, dtype), stored, checkpoint.name)

    wanted = list(dict.fromkeys(found.stored[name.path] for name in found.table.values()))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:  # checks of the values take most of the time, outside the interpreter
        whole = dict(zip(wanted, threads.map(read, wanted), strict=True))
    return {ours: part(name, whole[found.stored[name.path]]) for ours, name in found.table.items()}


def part(name: Name, stored: Tensor) -> Tensor:
    ours = import_tensor(name, stored)
    return ours.contiguous() if name.transposed else ours


def finite(tensor: Tensor, name: str, where: str) -> Tensor:
    """A flipped bit often shows as NaN or infinity."""
    if tensor.numel() and torch.isfinite(tensor.sum()):  # faster than to find both ends; a sum may overflow
        return tensor
    low, high = tensor.aminmax() if tensor.numel() else (torch.zeros(()), torch.zeros(()))
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError(
            f"{where}: tensor {name!r} holds NaN or infinity; the file is damaged (or too large for {tensor.dtype}). Fetch it again"
        )
    return tensor


def assign(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Puts tensors in the place of the parameters, without copying them; what was tied stays tied."""
    same: dict[int, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(name)
    for names in same.values():
        found = [name for name in names if name in state]
        assert found, f"no tensor for {names}"
        parameter = nn.Parameter(state[found[0]])
        for name in names:
            owner, _, leaf = name.rpartition(".")
            net.get_submodule(owner)._parameters[leaf] = parameter


def restore_tables(net: Transformer) -> None:
    """Fixed tables (sinusoids) are computed, not stored, and the meta device computed nothing: take them from a real build."""
    if not any(buffer.is_meta for buffer in net.buffers()):
        return
    real = dict(net.config.build().named_buffers())
    for name, buffer in list(net.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            net.get_submodule(owner)._buffers[leaf] = real[name]


def fresh(settings: Mapping[str, Any], dtype: torch.dtype | None, device: str | torch.device) -> Model:
    """A model with new weights: {arch: llama, preset: smollm2-135m, width: 256, ..., tokenizer: folder or source}."""
    fields = dict(settings)
    if "arch" not in fields:
        raise ValueError(
            f"a fresh model needs arch, for example {{arch: llama, width: 256}}; got {', '.join(map(str, fields)) or 'nothing'}"
        )
    name = fields.pop("arch")
    arch: Any = lookup("models", name)
    preset = fields.pop("preset", None)
    if preset is not None and preset not in arch.presets:
        raise ValueError(f"{name} has no preset called {preset!r}{suggest(str(preset), arch.presets)}")
    tokenizer = fresh_tokenizer(fields.pop("tokenizer", None))
    own = {each.name for each in dataclasses.fields(arch)}  # T5 has a start of its own
    trained = sorted((fields.keys() & PARTS.keys()) - own)
    if wrong := [key for key in trained if PARTS[key] != name]:
        raise ValueError(f"{wrong[0]} is for {PARTS[wrong[0]]}, and this is {name}; leave it out")
    if (name == "blip2" and preset is None) or trained:
        from luthier.sources import joined

        load = lambda part: load_model(part, dtype)  # noqa: E731
        check_fields(build(arch, {key: value for key, value in fields.items() if key not in PARTS}))
        model = joined.comparing(fields, tokenizer, load) if name == "blip2" else joined.seeing(fields, load)
        model.net.to(device, dtype).eval()
        return model
    if tokenizer is not None and "vocab" not in own:
        raise ValueError(f"{name}: {arch.untrained}; leave the tokenizer out")
    if tokenizer is not None and preset is None:
        fields = from_tokenizer(arch, tokenizer) | fields
    config = build(arch, {**(arch.presets[preset] if preset else {}), **fields})
    check_fields(config)
    if tokenizer is not None and tokenizer.vocab > config.vocab:
        raise ValueError(
            f"vocab={config.vocab}, but the tokenizer has {tokenizer.vocab} entries; leave vocab out, or take a smaller tokenizer"
        )
    try:
        net = config.build().to(device, dtype or torch.float32).eval()
    except (TypeError, ZeroDivisionError, AssertionError, RuntimeError) as error:
        raise ValueError(f"fresh {name}: a model of these sizes cannot be built ({str(error).partition(chr(10))[0]})") from error
    return spelled(Model(net, tokenizer, tokenizer and template_of(tokenizer, name), f"fresh {name}"))


def from_tokenizer(arch: Any, tokenizer: "Tokenizer") -> dict[str, int]:
    """What an architecture has to know of the tokenizer: how many tokens there are, and which one pads or hides."""
    known = {"vocab": tokenizer.vocab, "pad": tokenizer.pad, "mask": tokenizer.mask}
    return {field.name: known[field.name] for field in dataclasses.fields(arch) if known.get(field.name) is not None}


def fresh_tokenizer(source: str | None) -> "Tokenizer | None":
    """From a folder with tokenizer files, or from any source that has a tokenizer."""
    if source is None:
        return None
    path = locate(source)
    tokenizer = read_tokenizer(path) if path.is_dir() else open_checkpoint(source).tokenizer
    if tokenizer is None:
        raise FileNotFoundError(f"{source}: no tokenizer there")
    return tokenizer
