"""Several methods on one model as one: each under an adapter name of its own, all of them under the composition's.

A member is called NAME_KIND (default_lora, default_lora2), so that it may also be put to work alone or take rows of a mixed batch. Members
of a stack that train the same parameter train one and the same, and a task's head is one for all that work together.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.around import Adapter, Own
from luthier.anatomy.call import Leading
from luthier.anatomy.compose import Average as Mean
from luthier.anatomy.compose import Stacked, adds, place
from luthier.anatomy.switch import Named
from luthier.anatomy.text import listen
from luthier.anatomy.virtual import Rows
from luthier.config import build
from luthier.lookup import lookup
from luthier.sources.run_folder import COMPOSITION
from luthier.sources.save import replace_folder, write_json
from luthier.tuning._attached import Attached
from luthier.tuning._composition import Average, Fuse, Node, Parallel, Split, Stack, members_of, name_of, plain
from luthier.tuning._own import NewRows
from luthier.tuning._shared import share
from luthier.tuning._stored import kind_of, parts

Make = Callable[[Any, str, str], Attached]  # a method, its label, its adapter's name


@dataclass(frozen=True)
class Way:
    """What one pass over a text runs under: adapters in order; in a split several such groups, by the place of a token."""

    groups: tuple[tuple[str, ...], ...]
    ends: tuple[int, ...] = ()
    total: int | None = None
    names: tuple[str, ...] = ()  # of all adapters that it rests on
    called: str = ""  # by rows, where a parallel composition names its members


@dataclass
class Grown:
    """The members of one composition that are on the model so far, by label."""

    anatomy: Anatomy
    name: str
    make: Make
    members: dict[str, Attached] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)

    def label(self, kind: str) -> str:
        self.labels[kind] += 1
        return kind if self.labels[kind] == 1 else f"{kind}{self.labels[kind]}"

    def called(self, label: str) -> str:
        return f"{self.name}_{label}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.called(f"{kind}{i}" if i > 1 else kind) for kind, count in self.labels.items() for i in range(1, count + 1))

    def check_names(self, ways: Sequence[Way]) -> None:
        """A way that rows call by a name is not another member's, nor another way's."""
        counts = Counter(way.called for way in ways if way.called)
        taken = [name for name, count in counts.items() if count > 1]
        taken += [way.called for way in ways if (own := self.called(way.called)) in self.names and way.groups != ((own,),)]
        if taken:
            raise ValueError(f"two members of a parallel composition would be called {taken[0]!r}; give them other names")

    def ways(self, node: Any) -> list[Way]:
        """Puts a method or a composition on the model; how a text runs through it."""
        match node:
            case Stack():
                return [_joined(ways) for ways in product(*[self.ways(member) for member in node.stack])]
            case Parallel():
                called = node.names or ("",) * len(node.parallel)
                return [_called(way, name) for name, member in zip(called, node.parallel, strict=True) for way in self.ways(member)]
            case Split():
                return [self._split(node, self._single(node))]
            case Average() | Fuse():
                return [self._weighed(node, self._single(node))]
        label = self.label(kind_of(node))
        member = self.called(label)
        if member in self.anatomy.adapters:
            raise ValueError(f"there is an adapter called {member!r} already; give the composition another name, or remove that one")
        attached = self.make(node, label, member)
        if attached.whole or attached.net is not None:
            raise ValueError(f"{kind_of(node)} takes the whole model, so it cannot be one of several methods: let it stand alone")
        self.members[label] = attached
        inner = self.anatomy.switch.named.get(member)  # a method that is itself several
        return [Way(((member,),), names=(member,)) if inner is None else Way(inner.groups, names=inner.all)]

    def _single(self, node: Average | Fuse | Split) -> list[Way]:
        """The members, each one group of adapters."""
        ways = [self.ways(member) for member in members_of(node)]
        for member, mine in zip(members_of(node), ways, strict=True):
            if len(mine) != 1 or len(mine[0].groups) != 1:
                inner = "parallel" if len(mine) != 1 else "split"
                raise ValueError(
                    f"{name_of(node)} takes members that work at every token of one text, and {_spelt(member)} holds a {inner}: put the {inner} "
                    "outside"
                )
        return [mine[0] for mine in ways]

    def _split(self, node: Split, ways: list[Way]) -> Way:
        names = tuple(name for way in ways for name in way.names)
        if len(self.anatomy.stacks) > 1:
            raise ValueError(
                "split gives parts of one text to its members, and this model reads two: take parallel, or a model with one text"
            )
        if any(isinstance(part, Rows) for _, part in _parts(self.anatomy, names)):
            raise ValueError(
                "split gives parts of a text to its members, and virtual tokens stand before whole texts: put them in a stack around it"
            )
        if self.anatomy.task_heads():
            raise ValueError(
                "split gives parts of a text to its members, and a head that reads the whole text is nobody's: take parallel or average"
            )
        listen(self.anatomy)
        ends = tuple(sum(node.lengths[: i + 1]) for i in range(len(ways) - 1))
        total = sum(node.lengths) if len(node.lengths) == len(ways) else None
        return Way(tuple(way.groups[0] for way in ways), ends, total, names)

    def _weighed(self, node: Average | Fuse, ways: list[Way]) -> Way:
        names = tuple(name for way in ways for name in way.names)
        for member, way in zip(members_of(node), ways, strict=True):
            found = [part for _, part in _parts(self.anatomy, way.names)]
            if any(isinstance(part, Rows | Leading) for part in found):
                raise ValueError(
                    f"{name_of(node)} weighs what its members add to an output, and {_spelt(member)} adds tokens or keys to the text: put it in a stack around"
                )
            if isinstance(node, Fuse) and not any(adds(part) and not isinstance(part, Own | NewRows) for part in found):
                raise ValueError(
                    f"fuse attends over what its members add to an output, and {_spelt(member)} adds nothing, it gives the model's parameters other "
                    "values: average it, or put it in a stack around"
                )
        single = [self._as_one(way.groups[0]) for way in ways]
        if isinstance(node, Average):
            own, shares = self.called(self.label("average")), dict(zip(single, node.shares, strict=True))
            place(self.anatomy, single, own, lambda here: Mean(list(here.values()), [shares[each] for each in here]))
        else:
            label = self.label("fuse")
            own = self.called(label)
            over = {"adapters": dict.fromkeys(single, ""), "penalty": node.penalty, "dropout": node.dropout}
            method = build(lookup("tuning", "adapter_fusion"), over)
            self.members[label] = self.make(method, label, own)
        return Way(((own,),), names=(*names, *single, own))

    def _as_one(self, group: tuple[str, ...]) -> str:
        if len(group) == 1:
            return group[0]
        own = self.called(self.label("stack"))
        place(self.anatomy, group, own, lambda here: Stacked([here[name] for name in group if name in here]))
        return own


def compose(anatomy: Anatomy, node: Node, name: str, make: Make | None = None, method: Any = None) -> Attached:
    """Puts a composition on a model and at work. Where it cannot be, ValueError in a sentence, and the model is as it was.

    make: how each member comes there; `attach` when left out. method: the plug-in that this is the inside of.
    """
    before = dict(anatomy.modules())
    grown = Grown(anatomy, name, make or (lambda member, _, own: member.attach(anatomy, own)))
    try:
        ways = grown.ways(node)
        grown.check_names(ways)
        for way in ways:
            share(anatomy, way.groups, way.names, grown.members.values())
    except BaseException:
        for each in grown.names:
            anatomy.remove(each)
        for path, module in before.items():  # a quantised base is plain again
            if (site := anatomy.at(path)).module is not module:
                site.replace(module)
        raise
    passes = _register(anatomy, name, ways, grown.names)
    parameters: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for label, member in grown.members.items():
        fresh = {f"{label}.{key}": value for key, value in member.parameters.items() if id(value) not in seen}
        seen |= {id(value) for value in fresh.values()}
        parameters |= fresh
    attached = Attached(anatomy, name, method or node, parameters, passes=passes, members=grown.members)
    for label, member in grown.members.items():
        attached.rates |= {key: rate for own, rate in member.rates.items() if (key := f"{label}.{own}") in parameters}
        attached.factors |= {key: factor for own, factor in member.factors.items() if (key := f"{label}.{own}") in parameters}
        attached.memory |= {f"{label}.{key}": value for key, value in member.memory.items()}
    attached.save_of = lambda directory: save(attached, node, directory)
    each = list(grown.members.values())
    if any(member.penalty_of for member in each):
        attached.penalty_of = lambda: torch.stack([found for member in each if (found := member.penalty()) is not None]).sum()
    attached.begin_of = lambda steps: _all(member.begin(steps) for member in each)
    attached.step_of = lambda step: {
        f"{label}.{key}": cut for label, one in grown.members.items() for key, cut in one.after_step(step).items()
    }
    attached.fits_of = lambda key, shape: grown.members[key.partition(".")[0]].fits(key.partition(".")[2], shape)
    return attached


def save(attached: Attached, node: Node, directory: Path) -> None:
    """One folder: each member's in a folder of its own, in peft's form where peft has one, and composition.json."""
    from luthier.tuning._write import write  # the writer knows Attached

    record = {"base_model_name_or_path": attached.source or None, "tuning": plain(node), "members": list(attached.members)}
    if not isinstance(attached.method, Node):
        record["method"] = plain(attached.method)

    def fill(where: Path) -> None:
        for label, member in attached.members.items():
            member.source, member.tokenizer = attached.source, attached.tokenizer
            with attached.anatomy.using(member.name):  # what is asked of a head is asked of the member's
                write(member, where / label) if member.save_of is None else member.save_of(where / label)
        write_json(where / COMPOSITION, record)

    replace_folder(directory, fill, sum(value.nbytes for value in attached.state().values()))


def _all(calls: Iterable[None]) -> None:
    for _ in calls:
        pass


def _joined(ways: Sequence[Way]) -> Way:
    """One after the other, the last outermost."""
    cut = [way for way in ways if len(way.groups) > 1]
    if len(cut) > 1:
        raise ValueError("a stack holds two splits, and a text is split once: put both in one split, with a stack for each part")
    by = cut[0] if cut else ways[0]
    groups = [tuple(name for way in ways for name in way.groups[i if way is by else 0]) for i in range(len(by.groups))]
    names = tuple(name for way in ways for name in way.names)
    return Way(tuple(groups), by.ends, by.total, names, "_".join(way.called for way in ways if way.called))


def _called(way: Way, name: str) -> Way:
    """Under the name that a parallel composition gives it, in front of one that it has from within."""
    return replace(way, called="_".join(filter(None, (name, way.called))))


def _register(anatomy: Anatomy, name: str, ways: list[Way], names: tuple[str, ...]) -> tuple[str, ...]:
    """The composition's name, and of a parallel one the names of its passes."""
    if len(ways) == 1:
        way = ways[0]
        anatomy.switch.named[name] = Named(way.groups, way.ends, way.total, all=names)
        return ()
    passes = []
    for i, way in enumerate(ways):
        alone = way.groups[0] == way.groups[-1] and len(way.groups[0]) == 1
        passes.append(f"{name}_{way.called}" if way.called else way.groups[0][0] if alone else f"{name}_{i + 1}")
        if passes[-1] not in names:
            anatomy.switch.named[passes[-1]] = Named(way.groups, way.ends, way.total)
    anatomy.switch.named[name] = Named(passes=tuple(passes), all=(*names, *(each for each in passes if each not in names)))
    return tuple(passes)


def _parts(anatomy: Anatomy, names: Iterable[str]) -> Iterator[tuple[str, Adapter]]:
    """(path, adapter) of everything that stands on the model under these names."""
    for path, around in anatomy.arounds():
        for name in names:
            yield from ((path, part) for _, _, part in parts(around, name))


def _spelt(member: Any) -> str:
    return name_of(member) if isinstance(member, Node) else kind_of(member)
