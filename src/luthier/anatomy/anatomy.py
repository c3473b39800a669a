"""Anatomy: where the parts of a transformer are, whoever wrote it.

A role is addressed as stack.role or cross.role or plainly: a bare `q` means every attention of every stack, `self.q` and `cross.q` the
first and the second attention of a block, `decoder.q` those of one stack. `embed`, `head` and `norm` are the places around the blocks.
Tuning, parallel plans, saving and the planner ask for roles, and so work on our models and on transformers models alike.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from luthier.anatomy.around import Adapter, Around
from luthier.anatomy.layout import has, parts_of, path_of, rows_of
from luthier.anatomy.site import Site, bare, resolve, walk
from luthier.anatomy.switch import Switch
from luthier.anatomy.table import AROUND, ROLES, Fused, is_norm, values_of
from luthier.core.frozen import FrozenLinear
from luthier.core.heads import PRETRAINING
from luthier.core.transformer import Net


@dataclass(frozen=True)
class Stack:
    """One list of blocks: decoder, encoder, vision ... `parts`: role (cross.q for a second attention) -> path inside a block."""

    name: str
    path: str
    blocks: nn.ModuleList = field(repr=False)
    parts: dict[str, str | Fused] = field(repr=False)


@dataclass
class Anatomy:
    """The parts of one model. net: what was given; root: the module that paths start from (the transformers model in a foreign Net)."""

    net: nn.Module = field(repr=False)
    root: nn.Module = field(repr=False)
    stacks: dict[str, Stack]
    kind: str  # config.json's model_type, "" for ours
    switch: Switch = field(repr=False)
    grown: dict[int, str] = field(default_factory=dict)  # tokens that the vocabulary has been grown by, by id
    tokenizer: Any = field(default=None, repr=False)  # the model's, for methods that start from words

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of every stack, a shared block as often as it runs."""
        return [block for stack in self.stacks.values() for block in stack.blocks]

    @property
    def embed(self) -> Site:
        return self._around("embed")

    @property
    def head(self) -> Site:
        return self._around("head")

    @property
    def norm(self) -> Site:
        return self._around("norm")

    def has(self, role: str) -> bool:
        """Whether there is an embed, head or norm."""
        return role in self._paths()

    @property
    def tied(self) -> bool:
        """Whether the head's weight is the embedding's."""
        return self.has("head") and self.head.module.weight is self.embed.module.weight

    def find(self, *roles: str, layers: str | int | Iterable[int] | None = None) -> list[Site]:
        """The sites of these roles, layer by layer. layers: "last 2", a number, several; in each stack. ValueError where no block has it."""
        chosen = {name: pick(layers, len(stack.blocks)) for name, stack in self.stacks.items()}
        found = [self._sites(role, chosen) for role in dict.fromkeys(roles)]
        order = [site for sites in found for site in sites]
        stack_of = {name: i for i, name in enumerate(self.stacks)}
        unique = {(site.path, site.role): site for site in order}
        return sorted(
            unique.values(), key=lambda site: (stack_of.get(site.stack, len(stack_of)), site.layer if site.layer >= 0 else 1 << 30)
        )

    def at(self, path: str) -> Site:
        """Any module of the base model by its path, as a site without a role."""
        root = self._root(path)
        try:
            resolve(root, path)
        except AttributeError:
            raise ValueError(f"{type(self.root).__name__} has no module {path!r}{_meant(path, [p for p, _ in self.modules()])}") from None
        return Site("", -1, "", path, root, self.net, self.switch)

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """(path, module) of the base model, as if nothing were around anything; heads added to a foreign model come after it."""
        yield from walk(self.root)
        if self.root is not self.net:
            yield from walk(self.net.get_submodule("heads"), "heads")

    def owners(self, parameter: Tensor) -> list[tuple[Site, str]]:
        """Every module that holds this parameter, and under which name: several where it is tied."""
        return [(self.at(path), name) for path, module in self.modules() for name, own in module._parameters.items() if own is parameter]

    def task_heads(self) -> dict[str, nn.Module]:
        """What stands on the model for a task of its own: classifiers, spans, values; not the vocabulary's head."""
        added = {kind: head for kind, head in self.net.heads.items() if kind != "lm"} if isinstance(self.net, Net) else {}
        if self.kind == "":  # heads of pre-training that came with the model are not tasks of their own
            config = getattr(self.net, "config", None)
            return {kind: head for kind, head in added.items() if not (kind in PRETRAINING and getattr(config, kind, False))}
        added = {kind: head for kind, head in added.items() if any(True for _ in head.parameters())}  # others are the model's own
        body = self.root.base_model_prefix
        children = dict(self.root.named_children())
        if body not in children or self.root.get_output_embeddings() is not None:  # type: ignore[operator]
            return added
        return added | {name: child for name, child in children.items() if name != body and any(True for _ in child.parameters())}  # type: ignore[comparison-overlap]

    @property
    def positions(self) -> int:
        """How many tokens a text may have, as the model's settings say; 0 where they say nothing."""
        config = getattr(self.root, "config", None)
        return max(0, getattr(config, "positions", None) or getattr(config, "max_position_embeddings", None) or 0)

    def state(self) -> dict[str, Tensor]:
        """The base model's parameters and buffers under the names they would have without adapters; quantised weights turned back."""
        tensors: dict[str, Tensor] = {}
        for path, module in self.modules():
            kept = {} if isinstance(module, FrozenLinear) else module._buffers  # its buffers are its weight
            values = values_of(module) | {n: b for n, b in kept.items() if n not in module._non_persistent_buffers_set}
            tensors |= {f"{path}.{name}" if path else name: value for name, value in values.items() if value is not None}
        return tensors

    # Which adapters are at work

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of all adapters there are, and of compositions of them."""
        return tuple(dict.fromkeys([*(name for _, around in self.arounds() for name in around.adapters), *self.switch.named]))

    @property
    def active(self) -> tuple[str, ...]:
        return self.switch.chosen()[0]

    def activate(self, *names: str) -> None:
        """From now on these adapters are at work, the last one outermost; without names, the base alone."""
        self._check(names)
        self.switch.default = tuple(names)

    @contextmanager
    def using(self, *names: str, rows: Tensor | None = None) -> Iterator[None]:
        """Inside, these adapters are at work (none: the base alone), and again when backward repeats what ran inside.

        rows (B, T) or (B, 1) int64: each token, or each row (or document packed into one), takes names[rows] alone; -1 the base.
        """
        self._check(names)
        with self.switch.using(tuple(names), rows):
            yield

    def arounds(self) -> list[tuple[str, Around]]:
        """(path, Around) of every place with an adapter."""
        return [(path, around) for path, _ in self.modules() if isinstance(around := resolve(self._root(path), path), Around)]

    def at_work(self) -> list[list[Adapter]]:
        """The adapters of the active set, those of one place together, in order. ValueError where they are in parallel."""
        names = self.switch.every(self.switch.chosen()[0])
        return [[around.adapters[name] for name in names if name in around.adapters] for _, around in self.arounds()]  # type: ignore[misc]

    def _root(self, path: str) -> nn.Module:
        return self.net if self.root is not self.net and f"{path}.".startswith("heads.") else self.root

    def remove(self, name: str) -> None:
        """Take an adapter away for good; of a composition, all its members."""
        members = self.switch.named.pop(name, None)
        for path, _ in self.arounds():
            self.at(path).unwrap(name)
        for member in members.all if members else ():
            self.remove(member)
        self.switch.default = tuple(other for other in self.switch.default if other != name)

    def _check(self, names: tuple[str, ...]) -> None:
        known = self.adapters if names else ()
        for name in names:
            if name not in known:
                raise ValueError(f"no adapter called {name!r}{_meant(name, known)}")

    # Looking for sites

    def _sites(self, role: str, layers: dict[str, list[int]]) -> list[Site]:
        if role in AROUND:
            return [self._around(role)]
        *narrow, bare_role = role.split(".")
        stacks = [name for name in narrow if name in self.stacks] or list(self.stacks)
        which = [name for name in narrow if name in ("self", "cross")]
        if bare_role not in ROLES or len(narrow) != len(which) + len([n for n in narrow if n in self.stacks]):
            raise ValueError(f"no role called {role!r}{_meant(role, self._known())}")
        prefixes = {"self": ("",), "cross": ("cross.",)}.get(which[0] if which else "", ("", "cross."))
        keys = [prefix + bare_role for prefix in prefixes]
        found = [site for name in stacks for i in layers[name] for key in keys if (site := self._site(name, i, key)) is not None]
        if not found:
            here = ", ".join(self.roles) or "none at all"
            raise ValueError(f"no block of {type(self.root).__name__} has the role {role!r} (roles here: {here})")
        return found

    @property
    def roles(self) -> list[str]:
        """The roles that blocks of this model have."""
        found = [
            role
            for stack in self.stacks.values()
            for role, part in stack.parts.items()
            if any(has(block, path_of(part)) for block in stack.blocks)
        ]
        return list(dict.fromkeys(found))

    def _known(self) -> list[str]:
        return [*ROLES, *AROUND, *(f"{stack}.{role}" for stack in (*self.stacks, "cross", "self") for role in ROLES)]

    def _site(self, stack: str, layer: int, role: str) -> Site | None:
        part = self.stacks[stack].parts.get(role)
        blocks = self.stacks[stack].blocks
        if part is None or not has(blocks[layer], path_of(part)):  # hybrid models: not every block has it
            return None
        module = resolve(blocks[layer], path_of(part))  # what layers share is one place
        first = next(i for i, block in enumerate(blocks) if has(block, path_of(part)) and resolve(block, path_of(part)) is module)
        path = f"{self.stacks[stack].path}.{first}.{path_of(part)}"
        rows = rows_of(self.root.config, bare(resolve(self.root, path)), part) if isinstance(part, Fused) else None
        return Site(role, first, stack, path, self.root, self.net, self.switch, rows)

    def _around(self, role: str) -> Site:
        path = self._paths().get(role)
        if path is None:
            raise ValueError(f"{type(self.root).__name__} has no {role}")
        return Site(role, -1, "", path, self.root, self.net, self.switch)

    def _paths(self) -> dict[str, str]:
        if self.kind == "":
            modules = dict(self.modules())
            ours = {"embed": "embed.token", "head": "heads.lm.out", "norm": "norm", "project": "project"}
            inside = "language." if "language" in modules else ""  # of a model that writes about pictures
            paths = {role: path if role == "project" else inside + path for role, path in ours.items()}
            return {role: path for role, path in paths.items() if path in modules and not isinstance(modules[path], nn.Identity)}
        found = {"embed": self.root.get_input_embeddings(), "head": self.root.get_output_embeddings(), "norm": self._last_norm()}  # type: ignore[operator]
        return {
            role: path for role, module in found.items() for path, other in self.modules() if module is not None and other is bare(module)
        }

    def _last_norm(self) -> nn.Module | None:
        """The norm after the blocks: the last one beside the last stack."""
        stem = list(self.stacks.values())[-1].path.rpartition(".")[0]
        beside = bare(resolve(self.root, stem)).named_children()
        norms = [bare(child) for name, child in beside if is_norm(bare(child)) and "embed" not in name]
        return norms[-1] if norms else None


def anatomy(net: nn.Module) -> Anatomy:
    """Read the anatomy of a Net, ours or foreign, or of a transformers model."""
    root = dict(net.named_children()).get("module", net)
    kind = getattr(getattr(root, "config", None), "model_type", "")
    stacks: dict[str, Stack] = {}
    for path, module in walk(root):
        if isinstance(module, nn.ModuleList) and (parts := parts_of(module, kind)):
            name = _unused(_stack_name(path, root), stacks)
            stacks[name] = Stack(name, path, module, parts)
    if not stacks and isinstance(root, Net) and isinstance(own := getattr(root, "blocks", None), nn.ModuleList):
        stacks["encoder"] = Stack("encoder", "blocks", own, {})  # layers without a part that has a role (ELMo's)
    if not stacks:
        raise ValueError(f"no layout fits {type(root).__name__} (model_type {kind!r}); add a row to ATTENTION in anatomy/table.py")
    switches = (module.switch for module in root.modules() if isinstance(module, Around))
    return Anatomy(net, root, stacks, kind, next(switches, None) or Switch())


def pick(layers: str | int | Iterable[int] | None, count: int) -> list[int]:
    """Layer numbers out of `count`: None all, "last 2", "first 2", a number, several; -1 is the last."""
    if layers is None:
        return list(range(count))
    if isinstance(layers, str):
        side, _, number = layers.partition(" ")
        if side not in ("last", "first") or not number.isdigit() or int(number) == 0:
            raise ValueError(f"blocks: {layers!r} is neither 'last N', 'first N' nor a list of numbers")
        if int(number) > count:
            raise ValueError(f"blocks: {layers!r}, but there are {count}")
        return list(range(count))[-int(number) :] if side == "last" else list(range(int(number)))
    numbers = [layers] if isinstance(layers, int) else list(layers)
    wrong = [number for number in numbers if not -count <= number < count]
    if wrong:
        raise ValueError(f"blocks: there is no block {', '.join(map(str, wrong))}; they are numbered 0 to {count - 1}")
    return sorted({number % count for number in numbers})


def _stack_name(path: str, root: nn.Module) -> str:
    names = path.split(".")
    if "q_former" in names:
        return "query"
    found = [name for name in ("vision", "encoder", "decoder") if any(name in part for part in names)]
    if found:
        return found[0]
    return "encoder" if isinstance(root, Net) and not root.causal else "decoder"


def _unused(name: str, stacks: dict[str, Stack]) -> str:
    return next(free for free in (name, *(f"{name}{i}" for i in range(2, 100))) if free not in stacks)


def _meant(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known[:12])}" if known else ""
