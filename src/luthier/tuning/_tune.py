"""tune: freeze the model, attach a method; a call that fails leaves the model as it was."""

from contextlib import nullcontext
from typing import Any, Protocol

from torch import nn

from luthier.anatomy.anatomy import Anatomy
from luthier.config import build
from luthier.lookup import lookup
from luthier.sources.model import Model
from luthier.tuning._attached import Attached
from luthier.tuning._compose import compose
from luthier.tuning._composition import NODES, Node, members_of, tree
from luthier.tuning._vocabulary import back_if_it_fails, grow


class Method(Protocol):
    """A plug-in of this shelf."""

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached: ...


def tune(model: Model, method: Any, name: str = "default", **fields: Any) -> Attached:
    """Freeze every weight, attach the method's trainable parameters under an adapter name, and put that adapter to work.

    method: "lora" with its fields, {"kind": "lora", ...}, or LoRA(...); or several: a list stacks, {"average": [...]} and the like
    (`_composition.py`) compose, each member an adapter called NAME_KIND and all of them one called NAME. A second call under another name adds a second adapter;
    model.anatomy.activate(name) switches. ValueError for fields or roles that do not fit; the model is then as it was.
    """
    method = made(method, fields)
    check_name(model.anatomy, name)
    tokens = tokens_of(method)
    with back_if_it_fails(model) if tokens else nullcontext():
        for each in tokens:
            grow(model, each)
        model.anatomy.tokenizer = model.tokenizer
        attached = attach(model.anatomy, method, name)
    attached.source, attached.tokenizer = model.source, model.tokenizer
    model.attached = attached
    if attached.net is not None:
        model.net = attached.net
    return attached


def attach(body: Anatomy, method: Method | Node, name: str = "default") -> Attached:
    """`tune` for an anatomy without a Model around it."""
    check_name(body, name)
    before, active = _trainable(body.net), body.switch.default
    body.net.requires_grad_(False)
    try:
        attached = compose(body, method, name) if isinstance(method, Node) else method.attach(body, name)
        for parameter in attached.parameters.values():
            parameter.requires_grad_(True)
    except BaseException:
        body.remove(name)
        for parameter in body.net.parameters():
            parameter.requires_grad_(id(parameter) in before)
        body.switch.default = active
        raise
    if name in body.adapters:
        body.activate(name)
    return attached


def tokens_of(method: Any) -> list[Any]:
    """What a method adds to the vocabulary, or each of several."""
    if isinstance(method, Node):
        return [tokens for member in members_of(method) for tokens in tokens_of(member)]
    return [tokens] if (tokens := vars(method).get("tokens", ())) else []


def made(method: Any, fields: dict[str, Any]) -> Any:
    """A method object, or a composition, out of what a user may write."""
    if isinstance(method, list | tuple) or (isinstance(method, dict) and "kind" not in method and set(method) & set(NODES)):
        method = tree(method)
    if isinstance(method, dict) and "kind" in method:
        method, fields = str(method["kind"]), {**{key: value for key, value in method.items() if key != "kind"}, **fields}
    if isinstance(method, str):
        return build(lookup("tuning", method), fields)
    if fields:
        raise ValueError(f"{', '.join(fields)}: fields go with a method's name; {type(method).__name__} is made already")
    if not (isinstance(method, Node) or hasattr(method, "attach")) or isinstance(method, type):
        raise ValueError(f'a tuning method is a name ("lora"), {{"kind": ...}}, several of them, or LoRA(...), not {method!r}')
    return method


def check_name(body: Anatomy, name: str) -> None:
    if not name.isidentifier() or hasattr(nn.ModuleDict, name) or name in vars(nn.Module()):
        raise ValueError(f"an adapter cannot be called {name!r}: letters, digits and _, and not a word that torch's modules use")
    if name in body.adapters:
        raise ValueError(f"there is an adapter called {name!r} already; give this one a name, or remove the other with anatomy.remove")


def _trainable(net: nn.Module) -> set[int]:
    return {id(parameter) for parameter in net.parameters() if parameter.requires_grad}
