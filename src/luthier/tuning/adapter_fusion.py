"""AdapterFusion: attention over adapters of several tasks. Pfeiffer et al. 2020, arXiv:2005.00247, section 3.2.

First each task trains an adapter alone (ST-A; `tune` with {kind: adapter, ...}, saved). Then base and adapters are frozen, and at each
place p = softmax(Q r . K z_n) and y + sum_n p_n V z_n train, r what the last adapter reads, z_n what the n-th adds. V starts as the identity
and is kept near it by penalty * sum ||I - V||^2. Each adapter stays there under its own name, with the head it was saved with, whatever its
labels; the fusion has a head of its own. A fusion's folder brings the adapters without their heads.

MT-A, in which the base trains with all adapters together, is the same fusion over the base that came of it (benchmarks/claims/fusion.py).

B batch, T length, N adapters, D width
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.around import Adapter, OnRows, Own, Values
from luthier.anatomy.compose import adds, place, together
from luthier.anatomy.table import is_projection, values_of
from luthier.core.heads import LabelHead
from luthier.tuning._attached import Attached
from luthier.tuning._common import task_sites, train_beside
from luthier.tuning._folder import Folder
from luthier.tuning._heads import own_heads, start_from, with_labels
from luthier.tuning._read import read
from luthier.tuning._stored import kind_of
from luthier.tuning._tune import made


@dataclass(frozen=True)
class AdapterFusion:
    adapters: dict[str, str | dict[str, Any]]  # name -> folder of a saved adapter, or "" for one that is on the model
    penalty: float = 0.01  # weight of ||I - V||^2
    dropout: float = 0.0  # on the scores
    heads: dict[str, Literal["keep", "drop", "start"]] = field(
        default_factory=dict
    )  # adapter -> its own head stays under its name (as where
    # nothing is said), goes, or is what the fusion's head starts as
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    verified: ClassVar[str] = "adapters 1.3.0 (outputs and penalty on BERT and GPT-2), the count of BERT-base"

    def __post_init__(self) -> None:
        if len(self.adapters) < 2 or self.penalty < 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"adapter_fusion needs two adapters at least, penalty >= 0 and 0 <= dropout < 1, not {self}")
        if self.heads.keys() - self.adapters.keys() or list(self.heads.values()).count("start") > 1:
            raise ValueError(f"adapter_fusion: heads names its adapters, and one of them at most to start from, not {self.heads}")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        fresh = [source for source in self.adapters if source not in anatomy.adapters]
        try:
            sections = {each: _source(anatomy, each, given, self.heads.get(each, "keep")) for each, given in self.adapters.items()}
            fused = self._fuse(anatomy, name, {source for source, section in sections.items() if section})
        except BaseException:
            for source in fresh:
                anatomy.remove(source)
            raise
        parameters = {f"{place}.{key}": value for place, each in fused.items() for key, value in each.named_parameters()}
        beside = train_beside(anatomy, name, self.also_train)
        for source in (source for source, head in self.heads.items() if head == "start"):
            start_from(anatomy, name, source)
        attached = Attached(anatomy, name, replace(self, adapters=sections, heads={}), parameters | beside)
        attached.penalty_of = lambda: self.penalty * torch.stack([each.distance() for each in fused.values()]).sum()
        return attached

    def _fuse(self, anatomy: Anatomy, name: str, known: set[str]) -> dict[str, "Fused"]:
        heads = {site.path for site in task_sites(anatomy)}
        names = tuple(self.adapters)
        fused: list[Fused] = []

        def make(members: dict[str, Adapter]) -> Adapter:
            fused.append(Fused({each: members[each] for each in names if each in members}, known, self.dropout))
            return fused[-1]

        place(anatomy, names, name, make)
        for path, around in anatomy.arounds():
            if name not in around.adapters:
                continue
            each = around.adapters[name]
            assert isinstance(each, Fused)
            if path in heads:  # a task's head is its own; the fusion has another
                del around.adapters[name]
            elif any(isinstance(member, Own | OnRows) for member in each.members):
                raise ValueError(f"{path}: an adapter has values of its own here, which cannot be fused; train adapters with norms: false")
            elif each.adds and not is_projection(around.base):
                raise ValueError(
                    f"{path}: what an adapter makes of the embedding cannot be fused; leave it out of roles (of mad_x: invertible: false)"
                )
            elif each.adds:
                each.start(around.as_stored(values_of(around.base))["weight"])
        return {path: a for path, around in anatomy.arounds() for a in [dict(around.adapters.items()).get(name)] if isinstance(a, Fused) and a.adds}  # fmt: skip


class Fused(Adapter):
    """y + sum_n softmax_n(Q r . K z_n) V z_n; where its members only look on, so does it."""

    def __init__(self, members: Mapping[str, Adapter], known: set[str], dropout: float):
        super().__init__()
        self.names, self.members = tuple(members), tuple(members.values())  # no children: they stand here under their own names
        self.known, self.adds = known, any(map(adds, self.members))
        self.dropout, self.paired = nn.Dropout(dropout), any(member.paired for member in self.members)

    def start(self, weight_OI: Tensor) -> None:
        width, like = len(weight_OI), {"device": weight_OI.device, "dtype": weight_OI.dtype}
        self.query, self.key = nn.Linear(width, width, **like), nn.Linear(width, width, **like)
        self.value = nn.Linear(width, width, bias=False, **like)
        for linear in (self.query, self.key):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        nn.init.constant_(self.value.weight, 1e-6)
        self.value.weight.data.fill_diagonal_(1.0)

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        y, parts = together(self.members, base, x)
        if not parts:
            return y
        return y + self.mix(parts[-1][1], torch.stack([added for _, _, added in parts], -2)).to(y.dtype)

    def mix(self, read_BTD: Tensor, added_BTND: Tensor) -> Tensor:
        own = self.value.weight.dtype
        query, key, value = self.query(read_BTD.to(own)), self.key(added_BTND.to(own)), self.value(added_BTND.to(own))
        share = F.softmax(self.dropout(torch.einsum("...d,...nd->...n", query, key)), -1)
        return torch.einsum("...n,...nd->...d", share, value)

    def distance(self) -> Tensor:
        """||I - V||^2"""
        weight = self.value.weight
        return (torch.eye(len(weight), device=weight.device, dtype=weight.dtype) - weight).square().sum()

    def stored(self) -> Values:
        """With the members' own values, so that one folder brings everything; not of those that were on the model without a section."""
        each = zip(self.names, self.members, strict=True)
        theirs = {f"{name}.{key}": value for name, member in each if name in self.known for key, value in member.stored().items()}
        return dict(self.named_parameters()) | theirs


def _source(anatomy: Anatomy, name: str, given: str | dict[str, Any], head: str) -> str | dict[str, Any]:
    """Put an adapter on the model if it is not there; the section of a run that makes such a one, where it is known."""
    if isinstance(given, dict):  # a fusion's folder, which has its members without their heads
        if name not in anatomy.adapters:
            labels = {kind: part.out.out_features for kind, part in anatomy.task_heads().items() if isinstance(part, LabelHead)}
            attached = with_labels(anatomy, labels, name, lambda: made(given, {}).attach(anatomy, name), keep=False)
            for parameter in attached.parameters.values():
                parameter.requires_grad_(False)
        return given
    if not given:
        if name not in anatomy.adapters:
            raise ValueError(f"adapter_fusion: there is no adapter called {name!r} on the model; attach it first, or give its folder")
        for path in own_heads(anatomy, name) if head == "drop" else ():
            anatomy.at(path).unwrap(name)
        return ""
    path = Path(given)
    method = with_labels(anatomy, Folder(path).heads, name, lambda: read(anatomy, path, name), keep=head != "drop").method
    return {"kind": kind_of(method)} | asdict(method)
