"""AdaLoRA: low-rank terms whose ranks are shared out by importance. Zhang et al. 2023, arXiv:2303.10512, sections 3.1 to 3.3.

h = W x + scale * P diag(L) Q x, L zero at the start. After every optimizer step each entry's sensitivity |w dw| and its uncertainty are
averaged over steps; a triplet's score is that of its singular value plus the means over its two vectors. Of all matrices' triplets those
with the highest scores stay, as many as the budget, which falls from `rank` to `target` a matrix as a cubic. The rest of the singular
values is set to zero. After the last step their triplets go for good, from the model and from the optimizer; not before, because the
regulariser, clipping and Adafactor's means still read them.

I input width, O output width, R rank; A is the paper's Q, B its P
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.table import is_projection
from luthier.tuning._attached import Attached, Cut
from luthier.tuning._common import projections, train_beside
from luthier.tuning._lowrank import check_place
from luthier.tuning._triplets import Triplets, orthogonality

SPREAD = 0.02  # of A and B at the start, as in the released code


@dataclass(frozen=True)
class AdaLoRA:
    steps: int = 0  # of the whole schedule; 0: as many as the run has
    roles: tuple[str, ...] = ()  # which projections; () all, as in the paper
    rank: int = 12  # of every matrix at the start
    target: int = 8  # the mean rank at the end
    alpha: float = 16.0
    dropout: float = 0.0  # on the input of A
    warmup: int = 0  # steps before ranks begin to go
    final: int = 0  # steps at the end, with the ranks that are left
    every: int = 1  # steps from one sharing out to the next
    betas: tuple[float, float] = (0.85, 0.85)  # of the averages of sensitivity and of uncertainty
    orthogonal: float = 0.1  # weight of the regulariser that keeps A's rows and B's columns orthonormal
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    blocks: str | tuple[int, ...] | None = None  # "last 2" or numbers; all when left out
    verified: ClassVar[str] = "peft 0.21.2, scores and masks step by step, files both ways"

    def __post_init__(self) -> None:
        if not 1 <= self.target <= self.rank:
            raise ValueError(f"adalora goes from rank={self.rank} down to target={self.target}: 1 <= target <= rank")
        if min(self.warmup, self.final) < 0 or self.every < 1 or (self.steps and self.warmup + self.final >= self.steps):
            raise ValueError(
                f"warmup={self.warmup} and final={self.final} leave no step of steps={self.steps} (the run's) for sharing out ranks"
            )
        if not all(0 < beta < 1 for beta in self.betas) or self.orthogonal < 0:
            raise ValueError(f"adalora needs betas between 0 and 1 and orthogonal >= 0, not {self.betas} and {self.orthogonal:g}")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        sites = anatomy.find(*(self.roles or projections(anatomy, self.also_train)), layers=self.blocks)
        if other := [site.address for site in sites if not is_projection(site.module)]:
            raise ValueError(f"adalora goes around projections, and {other[0]} is none; take q, k, v, o, up, gate or down")
        terms: dict[str, Triplets] = {}
        for site in sites:
            check_place(site, self.rank)
            (d_out, d_in), new = site.weight.shape, site.weight.new_empty
            a_RI, b_OR = new(self.rank, d_in).normal_(std=SPREAD), new(d_out, self.rank).normal_(std=SPREAD)
            terms[site.address] = Triplets(a_RI, b_OR, new(self.rank, 1).zero_(), scale_of(self.alpha, self.rank), self.dropout)
            site.wrap(name, terms[site.address])
        allocator = _Allocator(self, terms)
        parameters = {f"{address}.{part}": value for address, term in terms.items() for part, value in term.triplet().items()}
        attached = Attached(anatomy, name, self, parameters | train_beside(anatomy, name, self.also_train), memory=allocator.memory())
        attached.penalty_of = lambda: self.orthogonal * orthogonality(list(terms.values()))
        attached.step_of, attached.fits_of = allocator.step, allocator.fits

        def begin(steps: int) -> None:
            if not self.steps:
                attached.method = allocator.method = replace(self, steps=steps)

        attached.begin_of = begin
        return attached

    def budget(self, step: int, start: int, end: int) -> int:
        """How many ranks there are in all after this step: eq. 10."""
        if step <= self.warmup:
            return start
        left = 1 - (step - self.warmup) / (self.steps - self.final - self.warmup)
        return int((start - end) * left**3 + end) if left > 0 else end


def scale_of(alpha: float, rank: int) -> float:
    """By the rank at the start, whatever is left of it; as in the released code."""
    return alpha / (rank + 1e-5)


class _Allocator:
    """Which ranks stay. Its averages and its choice are tensors, changed in place, so that a checkpoint holds them."""

    def __init__(self, method: AdaLoRA, terms: dict[str, Triplets]):
        self.method, self.terms = method, terms
        self.importance = {key: torch.zeros_like(value, requires_grad=False) for key, value in self._entries().items()}
        self.uncertainty = {key: torch.zeros_like(value, requires_grad=False) for key, value in self._entries().items()}

    def memory(self) -> dict[str, Tensor]:
        kept = {f"{address}.kept": term.kept_R for address, term in self.terms.items()}
        first = {f"{key}.importance": value for key, value in self.importance.items()}
        return kept | first | {f"{key}.uncertainty": value for key, value in self.uncertainty.items()}

    @torch.no_grad()
    def step(self, step: int) -> dict[str, Cut]:
        """After the optimizer's step number `step`, before its gradients are gone. What has become smaller."""
        if self.over:
            return {}
        if not self.method.steps:
            raise ValueError(
                "adalora shares out ranks over a schedule: give tuning.steps, or call attached.begin(steps) before the first step"
            )
        method, last = self.method, self.method.steps - self.method.final
        if step < last:
            self._observe()
        if step == last or (method.warmup < step < last and step % method.every == 0):
            self._share(step)
        if step >= last:
            for term in self.terms.values():
                term.drop()
        return self._remove() if step >= method.steps else {}

    @property
    def over(self) -> bool:
        """Whether ranks have gone for good: the averages are gone too."""
        return all(value.numel() == 0 for value in self.importance.values())

    def fits(self, name: str, shape: Sequence[int]) -> bool:
        """Whether a saved value may have this shape: with all ranks, or without those that went."""
        end = name.removesuffix(".importance").removesuffix(".uncertainty")
        address, _, part = end.rpartition(".")
        term = self.terms.get(address)
        if term is None or part not in ("a", "b", "e"):
            return False
        rank, rows, columns = len(term.kept_R), term.b_OR.shape[0], term.a_RI.shape[1]
        found = {
            "a": [(k, columns) for k in range(rank + 1)],
            "b": [(rows, k) for k in range(rank + 1)],
            "e": [(k, 1) for k in range(rank + 1)],
        }
        return tuple(shape) in (found[part] if name == end else [found[part][-1], (0,)])

    def _remove(self) -> dict[str, Cut]:
        for value in (*self.importance.values(), *self.uncertainty.values()):
            value.data = value.new_empty(0)
        cuts: dict[str, Cut] = {}
        for address, term in self.terms.items():
            if not bool(term.kept_R.all()):
                term.remove()
                cuts |= {f"{address}.{part}": (dim, term.kept_R) for part, dim in (("a", 0), ("b", 1), ("e", 0))}
        return cuts

    def scores(self) -> dict[str, Tensor]:
        """(R,) for every matrix: eq. 7 over eq. 8 and 9."""
        entry = {key: self.importance[key] * self.uncertainty[key] for key in self.importance}
        return {
            address: entry[f"{address}.e"][:, 0] + (entry[f"{address}.a"].mean(1) + entry[f"{address}.b"].mean(0)) for address in self.terms
        }

    def _entries(self) -> dict[str, nn.Parameter]:
        return {f"{address}.{part}": value for address, term in self.terms.items() for part, value in term.triplet().items()}

    def _observe(self) -> None:
        first, second = self.method.betas
        for key, value in self._entries().items():
            now = torch.zeros_like(value) if value.grad is None else (value * value.grad).abs()
            self.importance[key].copy_(first * self.importance[key] + (1 - first) * now)
            self.uncertainty[key].copy_(second * self.uncertainty[key] + (1 - second) * (now - self.importance[key]).abs())

    def _share(self, step: int) -> None:
        scores = self.scores()
        everything = torch.cat(list(scores.values()))
        surplus = len(everything) - self.method.budget(step, len(everything), self.method.target * len(scores))
        if surplus == 0:
            return
        threshold = torch.kthvalue(everything, surplus).values
        for address, score_R in scores.items():
            self.terms[address].kept_R.copy_(score_R > threshold)
            self.terms[address].drop()
