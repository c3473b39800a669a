"""Low-rank terms as triplets of a singular value and its two vectors. Zhang et al. 2023, arXiv:2303.10512, eq. 3 and 4.

I input width, O output width, R rank
"""

import torch
from torch import Tensor, nn

from luthier.tuning._lowrank import LowRank


class Triplets(LowRank):
    """h = W x + scale * B diag(E) A drop(x); E zero at the start."""

    def __init__(self, a_RI: Tensor, b_OR: Tensor, e_R1: Tensor, scale: float, dropout: float = 0.0):
        super().__init__(a_RI, b_OR, scale, dropout)
        self.e_R1 = nn.Parameter(e_R1)
        self.kept_R: Tensor
        self.register_buffer("kept_R", torch.ones(len(a_RI), dtype=torch.bool, device=a_RI.device), persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.a_RI * self.e_R1, self.b_OR

    def triplet(self) -> dict[str, nn.Parameter]:
        return {"a": self.a_RI, "b": self.b_OR, "e": self.e_R1}

    def drop(self) -> None:
        """Triplets that are not kept have no singular value."""
        self.e_R1.masked_fill_(~self.kept_R[:, None], 0.0)

    @property
    def removed(self) -> bool:
        """Whether those that are not kept are gone for good. R is still the number there was."""
        return len(self.e_R1) < len(self.kept_R)

    def remove(self) -> None:
        """Takes those that are not kept out of memory. The parameters stay the same objects, so the optimizer still knows them."""
        for value, kept in (
            (self.a_RI, self.a_RI[self.kept_R]),
            (self.b_OR, self.b_OR[:, self.kept_R]),
            (self.e_R1, self.e_R1[self.kept_R]),
        ):
            value.grad = None
            value.data = kept.detach().clone()

    def remaining(self) -> Tensor:
        """(R,) bool: those that are kept, and those that have grown again since the last choice."""
        return self.kept_R if self.removed else self.kept_R | (self.e_R1.detach()[:, 0] != 0)

    def left(self) -> tuple[Tensor, Tensor, Tensor]:
        """A, B and E of those."""
        rows = slice(None) if self.removed else self.remaining()
        return self.a_RI.detach()[rows], self.b_OR.detach()[:, rows], self.e_R1.detach()[rows]


def orthogonality(terms: list[Triplets]) -> Tensor:
    """The mean of |A A^T - 1| and |B^T B - 1|: as in the released code, where the paper's eq. 4 has squares."""
    grams = [gram for term in terms for gram in (term.a_RI @ term.a_RI.T, term.b_OR.T @ term.b_OR)]
    return torch.stack([torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype)) for gram in grams]).mean()
