"""Where a token stands: rotary, learned, sinusoid and relative positions.

B batch, T query length, S key length, D width, H heads, K head width, R turned dimensions of a head
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn


class Rotation(NamedTuple):
    """cos and sin, each (B or 1, T, R/2), of the R <= K dimensions of a head that turn; interleaved: pairs (2i, 2i + 1), not (i, i + R/2)."""

    cos: Tensor
    sin: Tensor
    interleaved: bool = False


class Rotary(nn.Module):
    """Rotate the pairs of each head by position * theta^(-2i/R). Su et al. 2021, arXiv:2104.09864, eq. 34.

    turned: R, how many of a head's first dimensions turn (GPT-NeoX, GLM: a share of them); 0: all. interleaved: neighbours are pairs, as
    in the paper, GPT-J and ChatGLM2; otherwise the two halves are. Angles are float32 whatever the model's dtype, as every published
    model was trained.
    """

    def __init__(self, head_width: int, theta: float = 10_000.0, *, turned: int = 0, interleaved: bool = False):
        super().__init__()
        self.head_width, self.theta = head_width, theta
        self.turned, self.interleaved = turned or head_width, interleaved

    @property
    def plain(self) -> bool:
        """Whether whole heads turn, by halves."""
        return self.turned == self.head_width and not self.interleaved

    def forward(self, position_BT: Tensor, dtype: torch.dtype) -> Rotation:
        exponent_R2 = torch.arange(0, self.turned, 2, device=position_BT.device, dtype=torch.int64).float() / self.turned
        rate_R2 = 1.0 / (self.theta**exponent_R2)
        angle = position_BT.float()[..., None] * rate_R2
        return Rotation(angle.cos().to(dtype), angle.sin().to(dtype), self.interleaved)


def rotate(x_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Each head of x turned by its position's angles; (B, H, T, K)."""
    return _Rotate.apply(x_BHTK, *rotation) if torch.is_grad_enabled() and x_BHTK.requires_grad else _turn(x_BHTK, *rotation)


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
        return _turn(grad, cos, -sin, ctx.interleaved), None, None, None


def _turn(x_BHTK: Tensor, cos_BTR: Tensor, sin_BTR: Tensor, interleaved: bool) -> Tensor:
    cos, sin = cos_BTR[:, None], sin_BTR[:, None]
    turned = torch.empty(x_BHTK.shape, dtype=x_BHTK.dtype, device=x_BHTK.device)
    width = 2 * cos.shape[-1]
    if width < x_BHTK.shape[-1]:
        turned[..., width:] = x_BHTK[..., width:]
    (a, b), (left, right) = _pairs(x_BHTK, width, interleaved), _pairs(turned, width, interleaved)
    torch.mul(a, cos, out=left).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=right).addcmul_(a, sin)
    return turned


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

    def forward(self, queries: int, keys: int, device: torch.device) -> Tensor:
        query = torch.arange(keys - queries, keys, device=device)[:, None]
        distance = torch.arange(keys, device=device)[None] - query
        bucket_TS = relative_bucket(distance, self.bidirectional, self.bias.num_embeddings, self.reach)
        return self.bias(bucket_TS).permute(2, 0, 1)[None]
