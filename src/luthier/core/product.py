"""Products of a few rows with one weight, as a decoding step makes them: which kernel reads the weight fastest on a CPU.

For what core/step.py does not run: another machine or dtype, no compiler.

Measured on SmolLM2's shapes (AVX-512, AMX; time of all products of a step against F.linear, one thread):
- bfloat16: oneDNN's W x^T takes 0.7 of x W^T. With one column it falls to a slow matrix-vector kernel, so one row is doubled: 0.65.
- float32, one row: a wide weight (outputs > inputs) stored transposed takes 0.7, at the price of a copy.
- float32, 4 to 15 rows: MKL's packed product takes 0.5, at the price of a copy; 2 or 3 rows are best left to F.linear.
- int8 weights (one scale per output): 0.45 of bfloat16 for one row, half the memory; slower from about 8 rows on.
N rows, I inputs, O outputs, R ranks of all low-rank terms.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.quantise import Int8, int8_product

Product = Callable[[Tensor], Tensor]  # (N, I) -> (N, O), a fresh tensor


def product(weight_OI: Tensor, bias_O: Tensor | None, rows: int, copies: bool = True) -> Product:
    """x -> x W^T + b for inputs of exactly `rows` rows. copies: whether the weight may be laid out anew beside itself."""
    plain = weight_OI.device.type == "cpu" and bias_O is None
    if plain and weight_OI.dtype == torch.bfloat16:
        return _one_row_doubled(weight_OI) if rows == 1 else lambda x: torch.mm(weight_OI, x.t()).t().contiguous()
    if plain and weight_OI.dtype == torch.float32 and copies:
        if rows == 1 and weight_OI.shape[0] > weight_OI.shape[1]:
            weight_IO = weight_OI.t().contiguous()
            return lambda x: torch.mm(x, weight_IO)
        if 4 <= rows < 16 and torch.backends.mkl.is_available():
            packed = torch.ops.mkl._mkl_reorder_linear_weight(weight_OI, rows)
            return lambda x: torch.ops.mkl._mkl_linear(x, packed, weight_OI, None, rows)
    return lambda x: F.linear(x, weight_OI, bias_O)


def _one_row_doubled(weight_OI: Tensor) -> Product:
    return lambda x: torch.mm(weight_OI, x.expand(2, -1).t())[:, 0].contiguous()[None]


def quantised(weight: Int8, bias_O: Tensor | None) -> Product:
    """The same for a weight kept in 8 bits."""

    def run(x: Tensor) -> Tensor:
        y = int8_product(x, weight)
        return y if bias_O is None else y.add_(bias_O)

    return run


def with_terms(base: Product, a_RI: Tensor, b_OR: Tensor) -> Product:
    """base(x) plus B A x: two small products for all low-rank terms together."""
    a_IR, b_RO = a_RI.t(), b_OR.t()
    return lambda x: base(x).addmm_(torch.mm(x, a_IR), b_RO)
