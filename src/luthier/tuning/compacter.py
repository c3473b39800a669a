"""Compacter: adapters of low-rank hypercomplex products. Karimi Mahabadi et al. 2021, arXiv:2106.04647, eq. 5.

W = sum_n A_n (x) (s_n t_n), the Kronecker product of a small rule A that all adapters share and a matrix of low rank of each one's own.
Compacter++: {after: [ffn]}.

N summands, A and C rows and columns of the rule (N each), P and Q the rest of the input and the output width, R rank
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.table import is_norm
from luthier.tuning._attached import Attached
from luthier.tuning._bottleneck import put, sublayers
from luthier.tuning._common import train_beside
from luthier.tuning._own import everything


@dataclass(frozen=True)
class Compacter:
    after: tuple[Literal["attn", "cross", "ffn"], ...] = ("attn", "ffn")  # sublayers, before their residual
    reduction: int = 32  # the model's width divided by this is the bottleneck's
    summands: int = 4  # n: widths must divide by it
    rank: int = 1  # of each summand's own matrix
    act: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] = "gelu"
    start: float = 0.01  # the rule's deviation
    norms: bool = True  # every norm of the model trains too
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    blocks: str | tuple[int, ...] | None = None  # "last 2" or numbers; all when left out
    verified: ClassVar[str] = "adapters 1.3.0 (outputs on BERT and GPT-2), the paper's counts"

    def __post_init__(self) -> None:
        if min(self.reduction, self.summands, self.rank) < 1 or not self.after:
            raise ValueError(f"compacter needs after, and reduction, summands and rank of 1 at least, not {self}")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        places = sublayers(anatomy, self.after, self.blocks)
        like = places[0].leaves.weight
        rule = nn.Parameter(self.start * torch.randn(self.summands, self.summands, self.summands, device=like.device).to(like.dtype))
        parameters: dict[str, nn.Parameter] = {"rule": rule}
        for place in places:
            width = max(1, place.width // self.reduction)
            down = PHM(place.leaves.weight, place.width, width, self.rank, rule)
            up = PHM(place.leaves.weight, width, place.width, self.rank, rule)
            nn.init.zeros_(up.right_NRQ)
            made = put(anatomy, name, place, down, up, self.act, 1.0, "out")
            parameters |= {key: parameter for key, parameter in made.items() if parameter is not rule}
        norms = [anatomy.at(path) for path, module in anatomy.modules() if self.norms and is_norm(module)]
        return Attached(anatomy, name, self, parameters | train_beside(anatomy, name, self.also_train, everything(norms)))


class PHM(nn.Module):
    """y = x W + b with W = sum_n A_n (x) (left_n right_n), which is never formed."""

    def __init__(self, like: Tensor, inputs: int, outputs: int, rank: int, rule_NAC: nn.Parameter):
        super().__init__()
        summands = len(rule_NAC)
        if inputs % summands or outputs % summands:
            raise ValueError(f"compacter: widths {inputs} and {outputs} must divide by summands={summands}; change reduction or summands")
        self.rule_NAC = rule_NAC
        self.left_NPR = nn.Parameter(like.new_empty(summands, inputs // summands, rank))
        self.right_NRQ = nn.Parameter(like.new_empty(summands, rank, outputs // summands))
        self.bias = nn.Parameter(like.new_zeros(outputs))
        for own_NIO in (self.left_NPR, self.right_NRQ):  # Glorot's, for each summand
            bound = (6 / (own_NIO.shape[1] + own_NIO.shape[2])) ** 0.5
            nn.init.uniform_(own_NIO, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        x_AP = x.unflatten(-1, (len(self.rule_NAC), -1))
        inner_NAR = torch.einsum("...ap,npr->...nar", x_AP, self.left_NPR)
        turned_NCR = torch.einsum("...nar,nac->...ncr", inner_NAR, self.rule_NAC)
        return torch.einsum("...ncr,nrq->...cq", turned_NCR, self.right_NRQ).flatten(-2) + self.bias
