"""What a file keeps of one method on one model: its adapters' own tensors, other values of the model's parameters, added tokens' rows."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from luthier.anatomy.around import Adapter, Around, OnRows, Own
from luthier.tuning._attached import Attached
from luthier.tuning._folder import DELTA, PREFIX
from luthier.tuning._names import Names
from luthier.tuning._own import NewRows


@dataclass
class Written:
    """The parts of a folder: adapter_config.json, adapter_model.safetensors, and of luthier_state.safetensors its tensors and notes."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    state: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    prefix: str = PREFIX  # before the names of modules; peft's prompts have another


def plain(attached: Attached, names: Names) -> Written:
    """The format of methods that peft does not have: the method's fields, and its tensors under the modules that they are around."""
    config = {"peft_type": kind_of(attached.method).upper(), "luthier": asdict(attached.method)}
    return Written(config, adapters(names, attached.name) | names.export(own_values(attached), whole=False))


def kind_of(method: Any) -> str:
    """The name of a method's file."""
    return type(method).__module__.rpartition(".")[2]


def adapters(names: Names, name: str) -> dict[str, Tensor]:
    """The tensors of every adapter of that name that has some of its own; one that several share stands in one place."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, around in names.anatomy.arounds():
        for role, _, part in parts(around, name):
            if not isinstance(part, Own | NewRows):
                fresh = {key: value for key, value in part.stored().items() if id(value) not in seen}
                seen |= {id(value) for value in fresh.values()}
                found |= {f"{names.prefix(path, role)}.{key}": value for key, value in fresh.items()}
    return found


def parts(around: Around, name: str) -> Iterator[tuple[str | None, Tensor | None, Adapter]]:
    """(role, rows, adapter) of what one method has around a module: one for each role of a fused projection, else one without rows."""
    adapter = dict(around.adapters.items()).get(name)
    if isinstance(adapter, OnRows):
        yield from ((role, adapter.get_buffer(f"rows_{role}"), part) for role, part in adapter.by_role.items())  # type: ignore[misc]
    elif isinstance(adapter, Adapter):
        yield None, None, adapter


def own_values(attached: Attached) -> dict[tuple[str, str], Tensor]:
    """Parameters with values of their own under this adapter, by (path, name), as their modules store them."""
    own: dict[tuple[str, str], Tensor] = {}
    for path, around in attached.anatomy.arounds():
        base, changed = around.parameters_by_name(), dict[str, Tensor]()
        for _, rows, part in parts(around, attached.name):
            for name, value in part.own.items() if isinstance(part, Own) else ():
                current = (base | changed)[name].detach()
                changed[name] = value.detach() if rows is None else current.index_copy(0, rows, value.detach().to(current.dtype))
        own |= {(path, name): value for name, value in around.as_stored(changed).items()}
    return own


def new_rows(attached: Attached, names: Names) -> dict[str, Tensor]:
    """Added tokens' vectors. A tied head's are the embedding's and are not written twice, as in peft."""
    return {f"{module}{DELTA}": rows.rows_KD for module, rows in _new_rows(attached, names)}


def token_indices(attached: Attached, names: Names) -> dict[str, Any]:
    indices = {module: rows.get_buffer("ids_K").tolist() for module, rows in _new_rows(attached, names)}
    return {"trainable_token_indices": indices} if indices else {}


def _new_rows(attached: Attached, names: Names) -> list[tuple[str, NewRows]]:
    body = attached.anatomy
    sites = [body.embed] + ([body.head] if body.has("head") and not body.tied else [])
    found = [(site, site.adapter(attached.name)) for site in sites]  # an embedding may have no one weight, and so no stored name
    return [(names.module(site), adapter) for site, adapter in found if isinstance(adapter, NewRows)]
