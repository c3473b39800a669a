"""An LSTM with a projection and clipped values, as TensorFlow's LSTMCell computes it. Sak et al. 2014, arXiv:1402.1128, section 2.

B rows, T steps, I input width, C cell width, P width of the projection, G = 4 C of all gates
"""

import torch
from torch import Tensor, nn

from luthier.core.recall import by_hand

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
        recurrent_GP, order = weight[:, inputs:], range(steps)[:: -1 if self.backward else 1]
        if type(self.project) is nn.Linear and by_hand(given_TBG, recurrent_GP, self.project.weight, h, c):
            out_TBP, h, c = _Steps.apply(given_TBG, recurrent_GP, self.project.weight, h, c, mask_BT, order, self.clip)
            return out_TBP.transpose(0, 1), (h, c)
        out: list[Tensor] = [h] * steps
        for t in order:
            i, j, f, o = (given_TBG[t] + h @ recurrent_GP.T).chunk(4, -1)
            new_c = ((f + 1).sigmoid() * c + i.sigmoid() * j.tanh()).clamp(-self.clip, self.clip)
            new_h = self.project(o.sigmoid() * new_c.tanh()).clamp(-self.clip, self.clip)
            if mask_BT is None:
                h, c = new_h, new_c
            else:
                here = mask_BT[:, t, None]
                h, c = torch.where(here, new_h, h), torch.where(here, new_c, c)
            out[t] = h
        return torch.stack(out, 1), (h, c)


class _Steps(torch.autograd.Function):
    """The loop above with its backward by hand: a weight's gradient is one product over all steps, instead of one for each added up."""

    @staticmethod
    def forward(ctx, given_TBG, recurrent_GP, project_PC, h, c, mask_BT, order, clip):  # type: ignore[override]
        steps, rows, _ = given_TBG.shape
        gate_TBG = torch.empty_like(given_TBG, memory_format=torch.contiguous_format)
        out_TBP, before_TBP = given_TBG.new_empty(steps, rows, h.shape[1]), given_TBG.new_empty(steps, rows, h.shape[1])
        cell_TBC, before_TBC = given_TBG.new_empty(steps, rows, c.shape[1]), given_TBG.new_empty(steps, rows, c.shape[1])
        here_TB1 = None if mask_BT is None or bool(mask_BT.all()) else mask_BT.T[..., None]
        for t in order:
            before_TBP[t], before_TBC[t] = h, c
            gates = torch.addmm(given_TBG[t], h, recurrent_GP.T, out=gate_TBG[t])
            i, j, f, o = gates.chunk(4, -1)
            for gate, squash in ((i, Tensor.sigmoid_), (j, Tensor.tanh_), (f.add_(1), Tensor.sigmoid_), (o, Tensor.sigmoid_)):
                squash(gate)
            new_c = torch.mul(f, c, out=cell_TBC[t]).addcmul_(i, j).clamp_(-clip, clip)
            new_h = ((o * new_c.tanh()) @ project_PC.T).clamp_(-clip, clip)
            if here_TB1 is not None:
                new_h, new_c = torch.where(here_TB1[t], new_h, h), torch.where(here_TB1[t], new_c, c)
            h, c = new_h, new_c
            out_TBP[t] = h
        ctx.save_for_backward(recurrent_GP, project_PC, gate_TBG, cell_TBC, before_TBC, before_TBP, out_TBP, here_TB1)
        ctx.order, ctx.clip = order, clip
        return out_TBP, h.clone(), c.clone()

    @staticmethod
    def backward(ctx, g_out_TBP, g_h, g_c):  # type: ignore[override]
        recurrent_GP, project_PC, gate_TBG, cell_TBC, before_TBC, before_TBP, out_TBP, here_TB1 = ctx.saved_tensors
        g_given_TBG, g_projected_TBP = torch.empty_like(gate_TBG), torch.empty_like(out_TBP)
        shown_TBC = cell_TBC.tanh()
        for t in reversed(ctx.order):
            g_h = g_h + g_out_TBP[t]
            kept_h, kept_c = (0.0, 0.0) if here_TB1 is None else (g_h.masked_fill(here_TB1[t], 0), g_c.masked_fill(here_TB1[t], 0))
            if here_TB1 is not None:
                g_h, g_c = g_h.where(here_TB1[t], 0), g_c.where(here_TB1[t], 0)
            i, j, f, o = gate_TBG[t].chunk(4, -1)
            g_i, g_j, g_f, g_o = g_given_TBG[t].chunk(4, -1)
            projected = torch.mul(g_h, out_TBP[t].abs() < ctx.clip, out=g_projected_TBP[t])
            g_shown = projected @ project_PC
            torch.mul(g_shown, shown_TBC[t], out=g_o).mul_(o).mul_(1 - o)
            g_c = (g_c + g_shown * o * (1 - shown_TBC[t].square())).mul_(cell_TBC[t].abs() < ctx.clip)
            torch.mul(g_c, before_TBC[t], out=g_f).mul_(f).mul_(1 - f)
            torch.mul(g_c, j, out=g_i).mul_(i).mul_(1 - i)
            torch.mul(g_c, i, out=g_j).mul_(1 - j.square())
            g_h, g_c = g_given_TBG[t] @ recurrent_GP + kept_h, g_c * f + kept_c
        _, _, _, o_TBC = gate_TBG.chunk(4, -1)
        g_recurrent = g_given_TBG.flatten(0, 1).T @ before_TBP.flatten(0, 1) if ctx.needs_input_grad[1] else None
        g_project = g_projected_TBP.flatten(0, 1).T @ (o_TBC * shown_TBC).flatten(0, 1) if ctx.needs_input_grad[2] else None
        return g_given_TBG, g_recurrent, g_project, g_h, g_c, None, None, None


class Highway(nn.Module):
    """g relu(W x) + (1 - g) x with g = sigmoid(V x). Srivastava et al. 2015, arXiv:1505.00387, eq. 3."""

    def __init__(self, width: int):
        super().__init__()
        self.transform, self.carry = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.carry(x).sigmoid() * (self.transform(x).relu() - x)
