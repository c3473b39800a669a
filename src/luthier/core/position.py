"""Where a token stands: rotary, learned, sinusoid and relative positions.

B batch, T query length, S key length, D width, H heads, K head width, R turned dimensions of a head
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from luthier.core import native
from luthier.core.recall import by_hand
from luthier.core.scaling import Scaling


class Rotation(NamedTuple):
    """cos and sin, each (B or 1, T, R/2), of the R <= K dimensions of a head that turn; interleaved: pairs (2i, 2i + 1), not (i, i + R/2).

    (B or 1, T, P, R/2) where a head has P equal parts, each turned by angles of its own.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool = False


class Rotary(nn.Module):
    """Rotate the pairs of each head by position * theta^(-2i/R). Su et al. 2021, arXiv:2104.09864, eq. 34.

    turned: R, how many of a head's first dimensions turn (GPT-NeoX, GLM: a share of them); 0: all. interleaved: neighbours are pairs, as
    in the paper, GPT-J and ChatGLM2; otherwise the two halves are. Angles are float32 whatever the model's dtype, as every published
    model was trained. scaling: other rates beyond the trained length.
    """

    def __init__(
        self, head_width: int, theta: float = 10_000.0, *, turned: int = 0, interleaved: bool = False, scaling: Scaling | None = None
    ):
        super().__init__()
        self.head_width, self.theta, self.scaling = head_width, theta, scaling
        self.turned, self.interleaved = turned or head_width, interleaved

    @property
    def plain(self) -> bool:
        """Whether whole heads turn, by halves."""
        return self.turned == self.head_width and not self.interleaved

    def forward(self, position_BT: Tensor, dtype: torch.dtype) -> Rotation:
        exponent_R2 = torch.arange(0, self.turned, 2, device=position_BT.device, dtype=torch.int64).float() / self.turned
        if self.scaling is None:
            angle = position_BT.float()[..., None] * (1.0 / (self.theta**exponent_R2))
            return Rotation(angle.cos().to(dtype), angle.sin().to(dtype), self.interleaved)
        angle = position_BT.float()[..., None] * self.scaling.rates(exponent_R2, self.theta, _lengths(position_BT))
        cos, sin = angle.cos() * self.scaling.sharpness, angle.sin() * self.scaling.sharpness
        return Rotation(cos.to(dtype), sin.to(dtype), self.interleaved)


def _lengths(position_BT: Tensor) -> Tensor:
    """How long each token's document is so far, (B, T): the next one begins where positions restart at 0."""
    document_BT = (position_BT == 0).cumsum(1)
    last = position_BT.new_zeros(len(position_BT), position_BT.shape[1] + 1).scatter_reduce(1, document_BT, position_BT, "amax")
    return last.gather(1, document_BT) + 1


def rotate(x_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Each head of x turned by its position's angles; (B, H, T, K)."""
    if rotation.cos.dim() == 4:
        return _rotate(x_BHTK.unflatten(-1, (rotation.cos.shape[2], -1)), rotation).flatten(-2)
    return _rotate(x_BHTK, rotation)


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    return _Rotate.apply(x, *rotation) if by_hand(x) else _turn(x, *rotation)


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation back: nothing of x is kept."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool):  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _turn(x, cos, sin, interleaved)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, ctx.interleaved, -1.0), None, None, None


def _turn(x_BHTK: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, interleaved: bool, sign: float = 1.0) -> Tensor:
    """Turned by the angles, or back where sign is -1."""
    if not interleaved and x_BHTK.dim() == 4 and native.usable(x_BHTK, cos_BTR, sin_BTR):
        return native.rotate(x_BHTK, cos_BTR, sin_BTR, sign)
    cos, sin = cos_BTR[:, None], sin_BTR[:, None] * sign
    if torch.compiler.is_compiling():
        return _turn_plainly(x_BHTK, cos, sin, interleaved)
    turned = torch.empty(x_BHTK.shape, dtype=x_BHTK.dtype, device=x_BHTK.device)
    width = 2 * cos.shape[-1]
    if width < x_BHTK.shape[-1]:
        turned[..., width:] = x_BHTK[..., width:]
    (a, b), (left, right) = _pairs(x_BHTK, width, interleaved), _pairs(turned, width, interleaved)
    torch.mul(a, cos, out=left).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=right).addcmul_(a, sin)
    return turned


def _turn_plainly(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The same without outputs that are parts of a tensor, which no compiler takes."""
    a, b = _pairs(x, 2 * cos.shape[-1], interleaved)
    both = a * cos - b * sin, b * cos + a * sin
    turned = torch.stack(both, -1).flatten(-2) if interleaved else torch.cat(both, -1)
    return torch.cat([turned, x[..., 2 * cos.shape[-1] :]], -1)


def _pairs(x: Tensor, width: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """The first and the second of each pair among the first `width` dimensions; two views (..., width/2)."""
    if interleaved:
        return x[..., 0:width:2], x[..., 1:width:2]
    return x[..., : width // 2], x[..., width // 2 : width]


def sinusoids(positions: int, width: int, layout: Literal["interleaved", "halves", "tensor2tensor"] = "interleaved") -> Tensor:
    """A (positions, width) table of sines and cosines. Vaswani et al. 2017, arXiv:1706.03762, section 3.5.

    The paper interleaves sin and cos; Marian stores all sines, then all cosines ("halves"); tensor2tensor and fairseq do so too but
    divide the exponent by width/2 - 1.
    """
    steps = width // 2
    position = torch.arange(positions, dtype=torch.float64)[:, None]
    exponent = torch.arange(steps, dtype=torch.float64) / (steps - 1 if layout == "tensor2tensor" else steps)
    angle = position * torch.exp(-math.log(10_000.0) * exponent)
    if layout == "interleaved":
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1).float()
    return torch.cat([angle.sin(), angle.cos()], -1).float()


class Sinusoid(nn.Module):
    """Fixed position vectors, looked up like learned ones."""

    table: Tensor

    def __init__(self, positions: int, width: int, layout: Literal["interleaved", "halves", "tensor2tensor"] = "interleaved"):
        super().__init__()
        self.register_buffer("table", sinusoids(positions, width, layout), persistent=False)
        self.num_embeddings = positions

    def forward(self, position_BT: Tensor) -> Tensor:
        return self.table[position_BT]


def relative_bucket(distance: Tensor, bidirectional: bool, buckets: int = 32, reach: int = 128) -> Tensor:
    """T5's bucket of key position minus query position. Raffel et al. 2019, arXiv:1910.10683, section 2.1.

    Half the buckets are exact distances, the rest grow logarithmically up to `reach`; both directions share them if bidirectional.
    """
    offset = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    grown = torch.log(distance.float().clamp(min=1) / exact) / math.log(reach / exact) * (buckets - exact)
    return offset + torch.where(distance < exact, distance, (exact + grown.long()).clamp(max=buckets - 1))


class RelativeBias(nn.Module):
    """A learned score for each head and bucket of distance, added to attention scores; (1, H, T, S)."""

    def __init__(self, heads: int, bidirectional: bool, buckets: int = 32, reach: int = 128):
        super().__init__()
        self.bias = nn.Embedding(buckets, heads)
        self.bidirectional, self.reach = bidirectional, reach

    def forward(self, queries: int, keys: int, device: torch.device, real_BS: Tensor | None = None) -> Tensor:
        distance_BTS = distances(queries, keys, device, real_BS)
        bucket_BTS = relative_bucket(distance_BTS, self.bidirectional, self.bias.num_embeddings, self.reach)
        return self.bias(bucket_BTS).permute(0, 3, 1, 2).contiguous()  # every layer reads it row by row


def distances(queries: int, keys: int, device: torch.device, real_BS: Tensor | None = None) -> Tensor:
    """Key position minus query position, (1 or B, T, S); queries are the last T keys, and keys that are padding do not count."""
    place_BS = torch.arange(keys, device=device)[None] if real_BS is None else real_BS.cumsum(1)
    return place_BS[:, None] - place_BS[:, keys - queries :, None]


def slopes(heads: int) -> list[float]:
    """2^(-8h/H) for head h = 1..H; where H is no power of two, those of the power below, then every other one of the power above.
    Press et al. 2022, arXiv:2108.12409, section 3, and the paper's code.
    """
    power = 2 ** int(math.log2(heads))
    return [2 ** (-8 * h / power) for h in range(1, power + 1)] + [2 ** (-4 * h / power) for h in range(1, 2 * (heads - power), 2)]


class ALiBi(nn.Module):
    """A score that falls linearly with distance, steeper in some heads: slope * (key position - query position), (1 or B, H, T, S).

    Press et al. 2022, arXiv:2108.12409, eq. in section 3. In float32, whatever the model's dtype.
    """

    def __init__(self, heads: int):
        super().__init__()
        self.slopes = slopes(heads)

    def forward(self, queries: int, keys: int, device: torch.device, real_BS: Tensor | None = None) -> Tensor:
        slope_H = torch.tensor(self.slopes, device=device, dtype=torch.float32)
        return slope_H[:, None, None] * distances(queries, keys, device, real_BS)[:, None]
