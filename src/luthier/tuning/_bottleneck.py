"""A bottleneck beside a sublayer. Houlsby et al. 2019, arXiv:1902.00751, section 2.1; He et al. 2021, arXiv:2110.04366, table 1.

A sublayer is a pair of places: the projection that its input enters (q or up) and the one that its output leaves (o or down).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import get_ident
from typing import Any, Literal

from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy, Stack
from luthier.anatomy.around import Adapter
from luthier.anatomy.site import Site, bare, resolve
from luthier.anatomy.table import is_norm
from luthier.core.feedforward import ACTIVATIONS

SUBLAYERS = {"attn": ("self.q", "self.o", "attn_norm"), "cross": ("cross.q", "cross.o", ""), "ffn": ("up", "down", "ffn_norm")}
Reads = Literal["out", "in", "sum"]


@dataclass(frozen=True)
class Sublayer:
    """Where it is entered and left; `norm`: of the residual sum behind it (post) or in front of it (pre)."""

    enters: Site
    leaves: Site
    norm: Site | None = None
    post: bool = False

    @property
    def width(self) -> int:
        return self.leaves.weight.shape[0]


class Seen:
    """An input noted where it enters and taken where the output leaves, as often. Threads have one each; a copy of a model starts empty."""

    def __init__(self) -> None:
        self.inputs: dict[int, tuple[Tensor, int]] = {}

    def note(self, x: Tensor) -> None:
        known, times = self.inputs.get(get_ident(), (x, 0))
        self.inputs[get_ident()] = (x, times + 1 if known is x else 1)  # a call that failed may have left another behind

    def take(self) -> Tensor:
        x, times = self.inputs.pop(get_ident())
        if times > 1:
            self.inputs[get_ident()] = (x, times - 1)
        return x

    def __reduce__(self) -> tuple[Any, ...]:
        return Seen, ()


class Tap(Adapter):
    """Notes what goes in, and changes nothing."""

    paired = True

    def __init__(self, seen: Seen):
        super().__init__()
        self.seen = seen

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        self.seen.note(x)
        return base(x)

    def parts(self, base: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.seen.note(x)


class Bottleneck(Adapter):
    """y + scale * up(act(down(r))) for y what leaves the sublayer.

    r is y itself; or, seen in front, x, what enters it; or, summed, norm(y + x), what the sublayer makes of the residual stream.
    """

    def __init__(
        self, down: nn.Module, up: nn.Module, act: str, scale: float = 1.0, seen: Seen | None = None, norm: Site | None = None, summed: bool = False
    ):  # fmt: skip
        super().__init__()
        self.down, self.up = down, up
        self.act, self.scale = act, scale
        self.seen, self.norm, self.summed = seen, norm, summed
        self.paired = seen is not None

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        y = base(x)
        return y + self.beside(self.read(y)).to(y.dtype)

    def parts(self, base: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        read = self.read(base(x))
        return read, self.beside(read).to(read.dtype)

    def beside(self, read: Tensor) -> Tensor:
        own = next(self.down.parameters()).dtype
        return self.scale * self.up(ACTIVATIONS[self.act](self.down(read.to(own))))

    def read(self, y: Tensor) -> Tensor:
        x = y if self.seen is None else self.seen.take()
        total = y + x if self.summed else x
        return total if self.norm is None else resolve(self.norm.root, self.norm.path)(total)

    def extra_repr(self) -> str:
        return f"act={self.act}, scale={self.scale:g}"


def sublayers(anatomy: Anatomy, names: Sequence[str], blocks: str | tuple[int, ...] | None, norms: bool = False) -> list[Sublayer]:
    """These sublayers (attn, cross, ffn) of these blocks. norms: with the norm beside each."""
    return [place for name in names for place in _of(anatomy, name, blocks, norms)]


def ends(weight_OI: Tensor, width: int, start: float, outputs: int | None = None) -> tuple[nn.Linear, nn.Linear]:
    """Down from O and up to O (or outputs), in the dtype and on the device of a weight; biases zero.

    start: the deviation of both, cut at two; 0: up is zero.
    """
    like = {"device": weight_OI.device, "dtype": weight_OI.dtype}
    down, up = nn.Linear(len(weight_OI), width, **like), nn.Linear(width, outputs or len(weight_OI), **like)
    for linear in (down, up):
        nn.init.zeros_(linear.bias)
        if start:
            nn.init.trunc_normal_(linear.weight, std=start, a=-2 * start, b=2 * start)
    if not start:
        nn.init.zeros_(up.weight)
    return down, up


def put(anatomy: Anatomy, name: str, place: Sublayer, down: nn.Module, up: nn.Module, act: str, scale: float, reads: Reads) -> dict[str, nn.Parameter]:  # fmt: skip
    """A bottleneck around one sublayer, and what it needs to see; its parameters by name."""
    seen = None if reads == "out" else Seen()
    norm = place.norm if reads == "sum" and place.post else None
    adapter = Bottleneck(down, up, act, scale, seen, norm, reads == "sum")
    if seen is not None:  # in a pre-norm block the residual stream is what goes into the norm
        entrance = place.norm if reads == "sum" and not place.post else place.enters
        assert entrance is not None
        replace(entrance, role="", rows=None).wrap(name, Tap(seen))
    place.leaves.wrap(name, adapter)
    return {f"{place.leaves.address}.{key}": parameter for key, parameter in adapter.named_parameters()}


def _of(anatomy: Anatomy, name: str, blocks: str | tuple[int, ...] | None, norms: bool) -> list[Sublayer]:
    enters, leaves, norm = SUBLAYERS[name]
    if norms and not norm:
        raise ValueError("reads: sum knows the norms of attn and ffn alone; leave cross out, or take reads: out")
    try:
        outs = anatomy.find(leaves, layers=blocks)
        ins = {(site.stack, site.layer): site for site in anatomy.find(enters, layers=blocks)}
        beside = {(site.stack, site.layer): site for site in anatomy.find(norm, layers=blocks)} if norms else {}
    except ValueError as error:
        raise ValueError(f"{error}; an adapter after {name} needs it: leave {name} out of `after`") from None
    if norms and len(beside) != len(outs):
        raise ValueError(f"reads: sum needs one norm beside each {name}, and there are {len(beside)} for {len(outs)}; take reads: out")
    post = {stack.name: is_post_norm(anatomy, stack) for stack in anatomy.stacks.values()}
    places = [(site, (site.stack, site.layer)) for site in outs]
    return [Sublayer(ins[at], site, beside.get(at), post[site.stack]) for site, at in places]


def is_post_norm(anatomy: Anatomy, stack: Stack) -> bool:
    """Whether blocks end in a norm: only a stack that ends without one needs a norm behind it (DeBERTa's LayerNorm is of its positions)."""
    beside = bare(resolve(anatomy.root, stack.path.rpartition(".")[0])).named_children()
    return not any(is_norm(bare(child)) and "embed" not in name and name != "LayerNorm" for name, child in beside)
