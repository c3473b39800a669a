"""Narrower vectors for rarer words, at both ends. Input: Baevski and Auli 2018, arXiv:1809.10853; softmax: Grave et al. 2016, arXiv:1609.04309.

The vocabulary, most frequent first, is cut into parts; part i has vectors of width / divide^i. N tokens, D width, V vocabulary
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class AdaptiveEmbedding(nn.Module):
    """Vectors by part, projected to the model's width. cuts: where the parts begin, the first at 0; without division there is one table."""

    def __init__(self, vocab: int, width: int, vectors: int, cuts: Sequence[int], divide: int):
        super().__init__()
        self.num_embeddings, self.embedding_dim = vocab, width
        self.starts = [0, *cuts] if divide > 1 else [0]
        sizes = [stop - start for start, stop in pairwise([*self.starts, vocab])]
        widths = [vectors // divide**i for i in range(len(sizes))]
        self.tables = nn.ModuleList(nn.Embedding(size, w) for size, w in zip(sizes, widths, strict=True))
        plain = divide == 1 and vectors == width
        self.projects = nn.ModuleList([] if plain else [nn.Linear(w, width, bias=False) for w in widths])

    @property
    def weight(self) -> Tensor:
        """The vectors of the most frequent words (of all, where there is one table)."""
        return self.tables[0].weight  # type: ignore[return-value]

    def forward(self, ids: Tensor) -> Tensor:
        if len(self.tables) == 1:
            return self._project(0, self.tables[0](ids))
        out = None
        for i, (start, table) in enumerate(zip(self.starts, self.tables, strict=True)):
            here = (ids >= start) & (ids < start + table.num_embeddings)  # type: ignore[operator]
            part = self._project(i, table(ids[here] - start))
            out = part.new_empty(*ids.shape, self.embedding_dim) if out is None else out
            out = out.masked_scatter(here[..., None], part)
        assert out is not None
        return out

    def _project(self, i: int, x: Tensor) -> Tensor:
        return self.projects[i](x) if len(self.projects) else x


class AdaptiveSoftmax(nn.Module):
    """Log-probabilities: of the frequent words and the other parts together, then within a part.

    The tables are the embedding's; so are the projections, turned round, but for the first (share) or none. backwards: parts take the
    places behind the frequent words from the last to the first, as the first published code has it; else from the first to the last.
    """

    def __init__(self, embed: AdaptiveEmbedding, cuts: Sequence[int], share: bool = True, tied: bool = True, backwards: bool = False):
        super().__init__()
        self.out_features, self.backwards = embed.num_embeddings, backwards
        self.bounds = [0, *cuts, embed.num_embeddings]
        self.tables = nn.ModuleList(nn.Linear(table.embedding_dim, table.num_embeddings) for table in embed.tables)  # type: ignore[arg-type]
        if tied:
            for mine, theirs in zip(self.tables, embed.tables, strict=True):
                mine.weight = theirs.weight
        parts = len(self.bounds) - 1
        # Of one table all parts have a projection of its width; the weight (D, d) is the embedding's.
        own = [embed.projects[i % len(embed.projects)] for i in range(parts)] if len(embed.projects) else []
        fresh = [i == 0 or not share for i in range(parts)]
        self.projects = nn.ModuleList(
            nn.Linear(p.in_features, p.out_features, bias=False) if new else p  # type: ignore[arg-type, union-attr]
            for p, new in zip(own, fresh, strict=True)
        ) if own else nn.ModuleList()  # fmt: skip
        self.clusters = nn.Linear(self.tables[0].in_features, parts - 1) if parts > 1 else None  # type: ignore[arg-type]

    @property
    def weight(self) -> Tensor:
        """The table of the most frequent words (of all, where there is one)."""
        return self.tables[0].weight  # type: ignore[return-value]

    def forward(self, state: Tensor) -> Tensor:
        """(..., D) to (..., V)."""
        head = self._head(state)
        first = self.bounds[1]
        found = [head[..., :first]]
        for i in range(1, len(self.bounds) - 1):
            found.append(head[..., self._place(i), None] + self._scores(i, state).log_softmax(-1))
        return torch.cat(found, -1)

    def loss(self, state_ND: Tensor, label_N: Tensor) -> Tensor:
        """Summed negative log-probability of the labels: only the parts they are in are computed, for the rows that need them."""
        head = self._head(state_ND)
        frequent = label_N < self.bounds[1]
        total = -head[frequent].gather(1, label_N[frequent, None]).sum()
        for i in range(1, len(self.bounds) - 1):
            here = (label_N >= self.bounds[i]) & (label_N < self.bounds[i + 1])
            inside = self._scores(i, state_ND[here]).log_softmax(-1)
            total = total - head[here, self._place(i)].sum() - inside.gather(1, label_N[here, None] - self.bounds[i]).sum()
        return total

    def _place(self, part: int) -> int:
        return self.bounds[1] + (len(self.bounds) - 2 - part if self.backwards else part - 1)

    def _head(self, state: Tensor) -> Tensor:
        scores = self._scores(0, state)
        if self.clusters is not None:
            scores = torch.cat([scores, self.clusters(self._projected(0, state))], -1)
        return scores.log_softmax(-1)

    def _scores(self, part: int, state: Tensor) -> Tensor:
        """Of the words of one part, before the softmax, in float32 at least."""
        if len(self.tables) > 1:
            out = self.tables[part](self._projected(part, state))
        else:
            table, rows = self.tables[0], slice(self.bounds[part], self.bounds[part + 1])
            out = nn.functional.linear(self._projected(part, state), table.weight[rows], table.bias[rows])  # type: ignore[index]
        return out.float() if out.dtype in (torch.bfloat16, torch.float16) else out

    def _projected(self, part: int, state: Tensor) -> Tensor:
        return state @ self.projects[part].weight if len(self.projects) else state  # type: ignore[operator]
