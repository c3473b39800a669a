"""Low-rank terms around a projection or an embedding. Hu et al. 2021, arXiv:2106.09685, eq. 3.

I input width, O output width, R rank, V vocabulary, D model width
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.anatomy.around import Adapter, Values
from luthier.anatomy.site import Site
from luthier.anatomy.table import is_projection, transposed
from luthier.core.fan import LowRankTerm


class LowRank(Adapter):
    """h = W x + scale * (B A - B0 A0) drop(x); B zero at the start, or B A = B0 A0 where a start is given."""

    mergeable = True

    def __init__(self, a_RI: Tensor, b_OR: Tensor, scale: float, dropout: float = 0.0):
        super().__init__()
        self.a_RI, self.b_OR = nn.Parameter(a_RI), nn.Parameter(b_OR)
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        self.a0_RI: Tensor | None
        self.b0_OR: Tensor | None
        self.register_buffer("a0_RI", None, persistent=False)
        self.register_buffer("b0_OR", None, persistent=False)

    def starts_from(self, a0_RI: Tensor, b0_OR: Tensor) -> None:
        """Take this product out of the base, which so keeps the residual without being touched."""
        self.a0_RI, self.b0_OR = a0_RI, b0_OR

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole term; with a start, of twice the rank."""
        if self.a0_RI is None or self.b0_OR is None:
            return self.a_RI, self.b_OR
        return torch.cat([self.a_RI, self.a0_RI]), torch.cat([self.b_OR, -self.b0_OR], 1)

    def delta(self) -> Tensor:
        """What it adds to the weight, (O, I)."""
        a_RI, b_OR = self.factors()
        return self.scale * (b_OR @ a_RI)

    def added(self, x: Tensor) -> Tensor:
        """What it adds to the output."""
        a_RI, b_OR = self.factors()
        return self.scale * F.linear(F.linear(self.dropout(x.to(a_RI.dtype)), a_RI), b_OR)

    @property
    def rank(self) -> int:
        return self.a_RI.shape[0]

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        out = base(x)
        return out + self.added(x).to(out.dtype)

    def merged(self, current: Values) -> Values:
        weight = current["weight"]
        return {"weight": weight + self.delta().to(weight.dtype)}

    def low_rank(self) -> LowRankTerm | None:
        if self.training and self.dropout.p > 0:
            return None
        return LowRankTerm(*self.factors(), self.scale)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}"


class LowRankEmbedding(LowRank):
    """The same around an embedding: e = W[i] + factor * scale * B A[:, i], A zero at the start (loralib). factor: what the model multiplies
    its vectors by (Gemma)."""

    def __init__(self, a_RV: Tensor, b_DR: Tensor, scale: float, factor: float = 1.0):
        super().__init__(a_RV, b_DR, scale)
        self.factor = factor

    def added(self, x: Tensor) -> Tensor:
        return self.scale * self.factor * F.linear(F.embedding(x, self.a_RI.T), self.b_OR)

    def merged(self, current: Values) -> Values:
        weight = current["weight"]
        return {"weight": weight + self.delta().T.to(weight.dtype)}

    def low_rank(self) -> LowRankTerm | None:
        return None


class Decomposed(Adapter):
    """DoRA: h = m * (W x + B A x) / |W + B A| row by row, m = |W| at the start. Liu et al. 2024, arXiv:2402.09353, eq. 5 and section 4.3.

    The norm is a constant to the gradient. It is taken without forming B A:
    |W + s B A|^2 = |W|^2 + 2 s sum_r (W A^T)_or B_or + s^2 sum_r (B A A^T)_or B_or, and |W|^2 does not change.
    """

    mergeable = True

    def __init__(self, term: LowRank, site: Site):
        super().__init__()
        self.inner = term
        self._base = (site.module, site.rows)  # in a tuple, so that it is no child; a deep copy follows it all the same
        self._known: tuple[tuple[int, int], Tensor] | None = None
        with torch.no_grad():
            self.magnitude = nn.Parameter(self._squares().sqrt().to(term.a_RI.dtype))

    def forward(self, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        out = base(x)
        bias = self._base[0]._parameters.get("bias")
        if bias is not None:
            bias = bias if self._base[1] is None else bias[self._base[1].to(bias.device)]
        gain = self.magnitude / self.norm()
        plain = out if bias is None else out - bias
        return out + ((gain - 1) * plain + gain * self.inner.added(x)).to(out.dtype)

    def low_rank(self) -> LowRankTerm | None:
        term = self.inner.low_rank()
        return None if term is None else replace(term, gain_O=self.magnitude / self.norm())

    def norm(self) -> Tensor:
        """|W + s B A| of every output."""
        with torch.no_grad():
            a_RI, b_OR = self.inner.factors()
            cross = (self._weight() @ a_RI.T.to(self._weight().dtype)).to(b_OR.dtype) + 0.5 * self.inner.scale * (b_OR @ (a_RI @ a_RI.T))
            squares = self._squares() + 2 * self.inner.scale * (cross * b_OR).sum(1)
            return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt().to(b_OR.dtype)

    def merged(self, current: Values) -> Values:
        turned = isinstance(self.inner, LowRankEmbedding)
        weight = current["weight"].T if turned else current["weight"]
        whole = weight + self.inner.delta()
        whole = (self.magnitude / whole.norm(dim=1))[:, None] * whole
        return {"weight": (whole.T if turned else whole).to(weight.dtype)}

    def _weight(self) -> Tensor:
        """(O, I), rows cut; an embedding's outputs are its columns."""
        module, rows = self._base
        weight = module._parameters["weight"]
        assert weight is not None
        weight = weight.T if transposed(module) or isinstance(module, nn.Embedding) else weight
        return weight if rows is None else weight[rows.to(weight.device)]

    def _squares(self) -> Tensor:
        """|W|^2 of every output, counted once for one state of the weight."""
        weight = self._base[0]._parameters["weight"]
        assert weight is not None
        key = (weight.data_ptr(), weight._version)
        if self._known is None or self._known[0] != key or self._known[1].device != weight.device:
            wide = torch.promote_types(weight.dtype, torch.float32)
            self._known = (key, self._weight().detach().to(wide).square().sum(1))
        return self._known[1]


def term_of(adapter: Adapter | None) -> LowRank | None:
    """The low-rank term that an adapter is, or has inside."""
    found = adapter.inner if isinstance(adapter, Decomposed) else adapter
    return found if isinstance(found, LowRank) else None


def principal(weight_OI: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """PiSSA: A and B with scale * B A = the largest `rank` singular components. Meng et al. 2024, arXiv:2404.02948, eq. 2 and 3."""
    u_OK, s_K, v_KI = torch.linalg.svd(weight_OI.detach().to(torch.promote_types(weight_OI.dtype, torch.float32)), full_matrices=False)
    root_R = (s_K[:rank] / scale).sqrt()
    return (root_R[:, None] * v_KI[:rank]).to(weight_OI.dtype), (u_OK[:, :rank] * root_R).to(weight_OI.dtype)


def around(site: Site, a_RI: Tensor, b_OR: Tensor, scale: float, dropout: float = 0.0) -> LowRank:
    """The kind of low-rank term that fits a place. For an embedding A is (R, V) and B is (D, R)."""
    check_place(site)
    if isinstance(site.module, nn.Embedding):
        return LowRankEmbedding(a_RI, b_OR, scale, float(getattr(site.module, "embed_scale", 1.0)))
    return LowRank(a_RI, b_OR, scale, dropout)


def check_place(site: Site, rank: int = 1) -> None:
    """Refuse what is no matrix, and a rank that this matrix cannot have."""
    if not (isinstance(site.module, nn.Embedding) or is_projection(site.module)):
        raise ValueError(
            f"low-rank terms go around projections and embeddings, and {site.address} is a {type(site.module).__name__}; leave it out of roles"
        )
    if rank > min(site.weight.shape):
        rows, columns = site.weight.shape
        raise ValueError(
            f"rank={rank} is above what {site.address}, {rows} x {columns}, can have; take {min(rows, columns)} at most, or leave the role out"
        )


def wrap(site: Site, name: str, term: LowRank, dora: bool) -> dict[str, nn.Parameter]:
    """Put a term around a place; its parameters by name."""
    adapter = Decomposed(term, site) if dora else term
    site.wrap(name, adapter)
    magnitude = {f"{site.address}.magnitude": adapter.magnitude} if isinstance(adapter, Decomposed) else {}
    return {f"{site.address}.a": term.a_RI, f"{site.address}.b": term.b_OR} | magnitude


def start_of(site: Site, term: LowRank) -> dict[str, Tensor]:
    """The factors a term started from, by name: singular vectors may come out otherwise on another machine."""
    assert term.a0_RI is not None and term.b0_OR is not None
    return {f"{site.address}.a0": term.a0_RI, f"{site.address}.b0": term.b0_OR}
