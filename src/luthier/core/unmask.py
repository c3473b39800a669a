"""Text out of a masked diffusion model: start from masks, fill in the surest, mask the rest again. Nie et al. 2025, arXiv:2502.09992.

Section 2.4 and appendix A.3: each step predicts every mask at once and keeps the predictions it is surest of; blocks of the answer are
finished one after the other, from left to right. B rows, T tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.core.reader import left_padded
from luthier.core.transformer import Net

NEVER = float("-inf")
Remasking = Literal["low_confidence", "random"]


@dataclass(frozen=True)
class Unmasking:
    """How an answer is filled in."""

    max_tokens: int = 128  # how long the answer is, its end token and what stands behind it counted
    block: int = 32  # how many tokens are finished before the next ones are begun; as many as max_tokens, or more: all at once
    steps: int = 0  # in all, divided evenly among the blocks; 0: one for each token
    temperature: float = 0.0  # 0 takes the likeliest token
    guidance: float = 0.0  # of the prompt: how far scores move away from those without it (appendix A.2)
    remasking: Remasking = "low_confidence"  # which of a step's predictions become masks again
    samples: int = 1  # answers for each prompt

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.block < 1 or 0 != self.steps < self.blocks:
            raise ValueError(
                f"max_tokens={self.max_tokens} in blocks of {self.block} need steps >= {self.blocks} (0: one for each token) and all of "
                f"them >= 1, not steps={self.steps}"
            )
        if self.temperature < 0 or self.guidance < 0 or self.samples < 1:
            raise ValueError(
                f"temperature={self.temperature} and guidance={self.guidance} must not be negative, samples={self.samples} be at least 1"
            )
        if self.remasking not in get_args(Remasking):
            raise ValueError(f"remasking={self.remasking!r} is not here; there are {', '.join(get_args(Remasking))}")

    @property
    def blocks(self) -> int:
        return -(-self.max_tokens // self.block) if self.block > 0 else 0


def unmask_ids(
    net: Net, prompts: Sequence[Sequence[int]], mask: int, how: Unmasking = Unmasking(), generator: torch.Generator | None = None
) -> list[list[int]]:
    """`how.max_tokens` new tokens behind each prompt, each `samples` times in turn. mask: the id that stands for what is not known yet."""
    rows: list[list[int]] = [[] for _ in range(len(prompts) * how.samples)]
    for blocks in stream_blocks(net, prompts, mask, how, generator):
        for row, block in zip(rows, blocks, strict=True):
            row.extend(block)
    return rows


@torch.inference_mode()
def stream_blocks(
    net: Net, prompts: Sequence[Sequence[int]], mask: int, how: Unmasking, generator: torch.Generator | None = None
) -> Iterator[list[list[int]]]:
    """Each finished block of every row, from left to right; prompts may be empty."""
    if net.causal:
        raise ValueError(f"{type(net).__name__} sees no later token, so it cannot fill in masks; generate from it instead")
    prompts = [prompt for prompt in prompts for _ in range(how.samples)]
    device = next(net.parameters()).device
    width = max((len(prompt) for prompt in prompts), default=0)
    answer_BT = torch.full((len(prompts), how.max_tokens), mask, device=device)
    ids_BT, real_BT = left_padded(prompts, device) if width else (answer_BT[:, :0], None)
    ids_BT = torch.cat([ids_BT, answer_BT], 1)
    real_BT = None if real_BT is None else F.pad(real_BT, (0, how.max_tokens), value=True)
    for turn, start in enumerate(range(width, width + how.max_tokens, how.block)):
        stop = min(start + how.block, width + how.max_tokens)
        steps = shares(how.steps, how.blocks)[turn] if how.steps else stop - start
        for kept in shares(stop - start, steps):
            scores_BTV = _scores(net, ids_BT, real_BT, mask, width, how.guidance)[:, start:stop]
            _keep(ids_BT[:, start:stop], scores_BTV, mask, kept, how, generator)
        yield ids_BT[:, start:stop].tolist()


def shares(total: int, parts: int) -> list[int]:
    """`total` in that many parts that differ by one at most, the larger ones first."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _scores(net: Net, ids_BT: Tensor, real_BT: Tensor | None, mask: int, width: int, guidance: float) -> Tensor:
    """(B, T, V) in float32 at least; with guidance g, (1 + g) * those with the prompt - g * those without."""
    scores_BTV = net(ids_BT, real_BT)
    scores_BTV = scores_BTV if scores_BTV.dtype == torch.float64 else scores_BTV.float()
    if not guidance or not width:
        return scores_BTV
    blank_BT = ids_BT.clone()
    blank_BT[:, :width] = mask
    return (1 + guidance) * scores_BTV - guidance * net(blank_BT, real_BT)


def _keep(ids_BT: Tensor, scores_BTV: Tensor, mask: int, kept: int, how: Unmasking, generator: torch.Generator | None) -> None:
    """Writes `kept` of the predictions for masks into ids, in place."""
    if not kept:
        return
    scores_BTV[..., mask] = NEVER  # a mask is no answer
    chosen_BT = scores_BTV.argmax(-1)
    if how.temperature:
        flat = (scores_BTV / how.temperature).softmax(-1).flatten(0, 1)
        chosen_BT = torch.multinomial(flat, 1, generator=generator).view_as(ids_BT)
    if how.remasking == "random":
        sure_BT = torch.rand(ids_BT.shape, generator=generator, device=ids_BT.device)
    else:
        sure_BT = scores_BTV.softmax(-1).gather(-1, chosen_BT[..., None])[..., 0]
    place_BK = sure_BT.masked_fill(ids_BT != mask, NEVER).topk(kept, -1).indices
    ids_BT.scatter_(1, place_BK, chosen_BT.gather(1, place_BK))
