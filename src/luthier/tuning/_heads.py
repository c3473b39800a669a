"""Task heads that adapters bring along: each keeps its own, with its own number of labels, under the adapter's name.

A model has one head of a kind; adapters of several tasks lie around it, and the one at work gives it its values.
"""

from collections.abc import Callable, Mapping

from torch import nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.around import Own
from luthier.anatomy.site import walk
from luthier.core.transformer import Transformer
from luthier.tuning._attached import Attached


def with_labels(anatomy: Anatomy, labels: Mapping[str, int], name: str, attach: Callable[[], Attached], keep: bool = True) -> Attached:
    """What `attach` puts on the model while its heads have these labels; then its heads are the old ones again.

    labels: by kind of head. keep: the adapter's own head stays, under its name; else it is dropped.
    """
    net = anatomy.net
    if not isinstance(net, Transformer):
        return attach()
    before = {kind: net.heads[kind] for kind in labels if kind in net.heads}
    for kind, count in labels.items():
        net.add_head(kind, count)
    try:
        attached = attach()
        own = own_heads(anatomy, name)
    finally:
        for kind in labels:
            if kind in before:
                net.heads[kind] = before[kind]
            elif not keep:
                del net.heads[kind]
    for path, adapter in own.items():
        site = anatomy.at(path) if keep or _there(net, path) else None
        if site is None:
            continue
        if not keep:
            site.unwrap(name)
        elif site.adapter(name) is None:
            site.wrap(name, adapter)
    return attached


def own_heads(anatomy: Anatomy, name: str) -> dict[str, Own]:
    """The values of task heads that an adapter brings, by path."""
    paths = {path for kind, head in anatomy.task_heads().items() for path, _ in walk(head, f"heads.{kind}")}
    found = {path: dict(around.adapters.items()).get(name) for path, around in anatomy.arounds() if path in paths}
    return {path: adapter for path, adapter in found.items() if isinstance(adapter, Own)}


def start_from(anatomy: Anatomy, name: str, source: str) -> None:
    """The head under `name` takes the values of the one under `source`. ValueError where labels differ."""
    mine, theirs = own_heads(anatomy, name), own_heads(anatomy, source)
    for path, adapter in mine.items():
        for key, value in adapter.own.items():
            given = theirs[path].own[key] if path in theirs else None
            if given is None or given.shape != value.shape:
                have = "none" if given is None else str(tuple(given.shape))
                raise ValueError(
                    f"the head of {source!r} cannot be started from: {path}.{key} is {tuple(value.shape)} here and {have} there"
                )
            value.data.copy_(given.data)


def _there(net: nn.Module, path: str) -> bool:
    return any(path == name for name, _ in walk(net))
