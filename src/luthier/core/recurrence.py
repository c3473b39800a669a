"""An LSTM with a projection and clipped values, as TensorFlow's LSTMCell computes it. Sak et al. 2014, arXiv:1402.1128, section 2.

B rows, T steps, I input width, C cell width, P width of the projection
"""

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]  # output (B, P) and cell (B, C)


class ProjectedLSTM(nn.Module):
    """c = clip(sigmoid(f + 1) c + sigmoid(i) tanh(j)); h = clip(W (sigmoid(o) tanh c)). gates: of (input, h) to i, j, f, o.

    backward: from the last step to the first. Steps that the mask leaves out change nothing, so a row ends where it ends.
    """

    def __init__(self, inputs: int, cell: int, project: int, clip: float, backward: bool = False):
        super().__init__()
        self.gates, self.project = nn.Linear(inputs + project, 4 * cell), nn.Linear(cell, project, bias=False)
        self.cell, self.clip, self.backward = cell, clip, backward

    def forward(self, x_BTI: Tensor, mask_BT: Tensor | None = None, state: State | None = None) -> tuple[Tensor, State]:
        """(B, T, P) and the state after the last step; state: of earlier steps."""
        rows, steps, inputs = x_BTI.shape
        h, c = state or (x_BTI.new_zeros(rows, self.project.out_features), x_BTI.new_zeros(rows, self.cell))
        weight = self.gates.weight
        # What the input gives to the gates is one product for all steps.
        given_TBG = nn.functional.linear(x_BTI, weight[:, :inputs], self.gates.bias).transpose(0, 1)
        recurrent = weight[:, inputs:]
        out: list[Tensor] = [h] * steps
        for t in reversed(range(steps)) if self.backward else range(steps):
            i, j, f, o = (given_TBG[t] + h @ recurrent.T).chunk(4, -1)
            new_c = ((f + 1).sigmoid() * c + i.sigmoid() * j.tanh()).clamp(-self.clip, self.clip)
            new_h = self.project(o.sigmoid() * new_c.tanh()).clamp(-self.clip, self.clip)
            if mask_BT is None:
                h, c = new_h, new_c
            else:
                here = mask_BT[:, t, None]
                h, c = torch.where(here, new_h, h), torch.where(here, new_c, c)
            out[t] = h
        return torch.stack(out, 1), (h, c)


class Highway(nn.Module):
    """g relu(W x) + (1 - g) x with g = sigmoid(V x). Srivastava et al. 2015, arXiv:1505.00387, eq. 3."""

    def __init__(self, width: int):
        super().__init__()
        self.transform, self.carry = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.carry(x).sigmoid() * (self.transform(x).relu() - x)
