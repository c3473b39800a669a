"""A decoding step compiled: core/decode.cpp runs all blocks and the head for one token of each row. What core/decode.py does is its oracle.

Torch reads a small model's weights in half the time that a step takes: the rest is some hundred calls and as many meetings of threads. Here
it is one call. Weights stay where they are, in float32 or bfloat16, or 8 bits; states between them are float32.
N rows, D width, K head width, S stored tokens, R ranks of all low-rank terms, V vocabulary
"""

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.core import native
from luthier.core.cache import Cache
from luthier.core.feedforward import ACTIVATIONS
from luthier.core.norm import RMSNorm
from luthier.core.quantise import quantise

if TYPE_CHECKING:
    from luthier.core.decode import Joined, Layer

P, I, F, C = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float, ctypes.c_int
ACTS = [ACTIVATIONS[name] for name in ("silu", "gelu_tanh", "gelu", "relu")]  # decode.cpp's numbers of them


class _Norm(ctypes.Structure):
    _fields_ = [("weight", P), ("bias", P), ("eps", F), ("centred", C)]


class _Product(ctypes.Structure):
    _fields_ = [("weight", P), ("scale", P), ("bias", P), ("a", P), ("b", P), ("inputs", I), ("outputs", I), ("rank", I)]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("attn_norm", _Norm), ("q_norm", _Norm), ("k_norm", _Norm), ("ffn_norm", _Norm),
        ("qkv", _Product), ("out", _Product), ("up", _Product), ("down", _Product),
        ("heads", I), ("groups", I), ("width", I), ("window", I), ("scale", F), ("gated", C), ("act", C),
    ]  # fmt: skip


class _Step(ctypes.Structure):
    _fields_ = [
        ("layers", P), ("count", I), ("norm", _Norm), ("head", _Product), ("x", P), ("logits", P), ("stored", P), ("capacity", P),
        ("cosine", P), ("sine", P), ("bias", P), ("angles", I), ("bias_row", I), ("bias_head", I), ("rows", I), ("length", I),
    ]  # fmt: skip


def compilable(layers: "Sequence[Layer]", norm: nn.Module, head: "Joined") -> bool:
    """Whether decode.cpp knows every part, on this machine."""
    norms = [norm, *(each for layer in layers for each in (layer.attn_norm, layer.q_norm, layer.k_norm, layer.ffn_norm) if each)]
    known = all(type(each) is RMSNorm or (type(each) is nn.LayerNorm and each.elementwise_affine) for each in norms)
    products = [head, *(each for layer in layers for each in (layer.qkv, layer.out, layer.gate_up, layer.down))]
    return known and all(layer.act in ACTS for layer in layers) and native.usable(*(each.weight_OI for each in products))


class Step:
    """Holds the description of a model for a number of rows, and what it points to."""

    def __init__(self, layers: "Sequence[Layer]", norm: nn.Module, head: "Joined", rows: int, int8: bool):
        self.rows, self.int8, self.dtype = rows, int8, head.weight_OI.dtype
        self.held: list[Any] = []  # what the structures point to lives as long as they do
        described: dict[int, _Layer] = {}  # a block that stands in several places is one
        for layer in layers:
            if id(layer) not in described:
                described[id(layer)] = self._layer(layer)
        self.all = (_Layer * len(layers))(*(described[id(layer)] for layer in layers))
        self.vocab = len(head.weight_OI)
        # One layer's keys of no tokens, as the cache asks for them.
        self.keys = [head.weight_OI.new_empty(rows, each.groups, 0, each.width) for each in self.all]
        self.step = _Step(ctypes.addressof(self.all), len(layers), self._norm(norm), self._product(head), rows=rows)

    def __call__(self, x_ND: Tensor, turn: tuple[Tensor, Tensor] | None, bias: Tensor | None, cache: Cache) -> Tensor:
        """Scores (N, V), float32. turn: cos and sin (1 or N, 1, K / 2); bias: what is added to attention's scores, (1 or N, 1 or H, S)."""
        count, step = len(self.keys), self.step
        kept = [cache.room(i, keys, cache.length - 1) for i, keys in enumerate(self.keys)]
        stored, capacity = (P * count)(*(kv.data_ptr() for kv in kept)), (I * count)(*(kv.shape[3] for kv in kept))
        x, logits = x_ND.float().contiguous(), torch.empty(self.rows, self.vocab)
        step.x, step.logits, step.stored, step.capacity = (
            x.data_ptr(),
            logits.data_ptr(),
            ctypes.addressof(stored),
            ctypes.addressof(capacity),
        )
        if turn is not None:
            cosine, sine = (angles.float().contiguous() for angles in turn)
            step.cosine, step.sine, step.angles = cosine.data_ptr(), sine.data_ptr(), 0 if len(cosine) == 1 else cosine.stride(0)
        step.bias = None
        if bias is not None:
            bias = bias.float().contiguous()
            step.bias, step.bias_row, step.bias_head = bias.data_ptr(), *(0 if bias.shape[i] == 1 else bias.stride(i) for i in (0, 1))
        step.length = cache.length
        native.decode(ctypes.addressof(step), self.dtype)
        return logits

    def _layer(self, layer: "Layer") -> _Layer:
        width = layer.out.weight_OI.shape[1] // layer.heads
        norms = (layer.attn_norm, layer.q_norm, layer.k_norm, layer.ffn_norm)
        products = (layer.qkv, layer.out, layer.gate_up, layer.down)
        scale = width**-0.5 if layer.scale is None else layer.scale
        return _Layer(
            *map(self._norm, norms), *map(self._product, products), layer.heads, layer.kv_heads, width, layer.window or 0, scale,
            layer.gated, ACTS.index(layer.act),
        )  # fmt: skip

    def _norm(self, norm: nn.Module | None) -> _Norm:
        if norm is None:
            return _Norm()
        weight, bias = norm.weight, getattr(norm, "bias", None)
        return _Norm(self._at(weight), self._at(bias), norm.eps, isinstance(norm, nn.LayerNorm))  # type: ignore[arg-type]

    def _product(self, of: "Joined") -> _Product:
        weight, scale = of.weight_OI.contiguous(), None
        if self.int8:
            packed = quantise(weight)
            weight, scale = packed.q_OI, packed.scale_O
        self.held.append(weight)
        outputs, inputs = weight.shape
        rank = 0 if of.a_RI is None else len(of.a_RI)
        return _Product(
            weight.data_ptr(), self._at(scale), self._at(of.bias_O), self._at(of.a_RI), self._at(of.b_OR), inputs, outputs, rank
        )

    def _at(self, of: Any) -> int | None:
        """Where a float32 copy of it lies."""
        if of is None:
            return None
        self.held.append(of.detach().float().contiguous())
        return self.held[-1].data_ptr()
