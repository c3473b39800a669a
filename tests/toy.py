"""A run small enough to kill a hundred times: a bag-of-vectors net with dropout, rows by number, a method with a memory of its own."""

import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from luthier.core.transformer import Net
from luthier.training import checkpoint
from luthier.training.loop import History, train
from luthier.training.random import seed_all
from luthier.training.settings import Training

VOCAB, WIDTH, ROWS = 11, 6, 10


class ToyNet(Net):
    """Hidden states are dropped-out, normed vectors of the ids; the head is tied to them."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.recompute = False
        self.token = nn.Embedding(VOCAB, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({"lm": nn.Linear(WIDTH, VOCAB, bias=False)})
        self.heads["lm"].weight = self.token.weight

    def add_head(self, kind: str, labels: int) -> None:
        raise NotImplementedError

    def hidden(self, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:  # type: ignore[override]
        return self.norm(self.mix(self.dropout(self.token(ids))))


@dataclass
class ToyBatch:
    ids: Tensor  # (1, N)
    labels: Tensor  # (N,)
    lengths: tuple[int, ...]
    adapter: str = ""

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]

    @property
    def labelled(self) -> int:
        return sum(self.counts().values())

    def counts(self) -> dict[str, int]:
        return {"lm": int((self.labels >= 0).sum()), "first": len(self.lengths)}

    def to(self, device: torch.device) -> "ToyBatch":
        return replace(self, ids=self.ids.to(device), labels=self.labels.to(device))


def row(number: int) -> tuple[list[int], list[int]]:
    """Row `number`: 2 to 7 ids, each followed by the next one around the circle; some positions are not learnt."""
    source = random.Random(number)
    ids = [source.randrange(VOCAB) for _ in range(source.randrange(2, 8))]
    return ids, [(i + 1) % VOCAB if source.random() < 0.7 else -1 for i in ids[:-1]] + [0]


def collate(numbers: list[int]) -> ToyBatch:
    rows = [row(number) for number in numbers]
    ids, labels = (torch.tensor([value for part in rows for value in part[i]]) for i in (0, 1))
    return ToyBatch(ids[None], labels, tuple(len(part[0]) for part in rows))


@dataclass
class ToyBatches:
    rows: int = 4
    micro: int = 2  # rows at once
    position: int = 0

    def __next__(self) -> list[ToyBatch]:
        numbers = [(self.position + i) % ROWS for i in range(self.rows)]
        self.position += self.rows
        return [collate(numbers[i : i + self.micro]) for i in range(0, self.rows, self.micro)]

    @property
    def epoch(self) -> float:
        return self.position / ROWS

    def state(self) -> dict[str, Any]:
        return {"position": self.position, "left": torch.arange(self.position % 3)}  # a tensor inside, as a rollout would be

    def restore(self, state: Mapping[str, Any]) -> None:
        assert torch.equal(state["left"], torch.arange(state["position"] % 3))
        self.position = state["position"]


@dataclass
class Term:
    sum: Tensor
    count: int
    weight: float = 1.0


@dataclass
class ToyObjective:
    """Two terms with different counts; noise from numpy's and Python's generators, which a resume has to restore too."""

    noise: float = 0.0
    poison: int = -1  # the call whose first term is NaN
    calls: int = 0
    together: bool = False

    def inputs(self, batch: ToyBatch) -> dict[str, Any]:
        return {"ids": batch.ids, "lengths": batch.lengths}

    def forward(self, net: Net, batch: ToyBatch) -> Tensor:
        return net.hidden(**self.inputs(batch))

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: ToyBatch) -> dict[str, Term]:
        counts = batch.counts()
        scores = heads["lm"](hidden)[0].to(torch.promote_types(hidden.dtype, torch.float32))
        lm = nn.functional.cross_entropy(scores, batch.labels, ignore_index=-1, reduction="sum")
        lm = lm * (1 + self.noise * (numpy.random.random() + random.random()))
        lm = lm * float("nan") if self.calls == self.poison else lm
        self.calls += 1
        starts = torch.tensor([0, *batch.lengths[:-1]]).cumsum(0)
        return {"lm": Term(lm, counts["lm"]), "first": Term(hidden[0, starts].float().square().sum(), counts["first"], 0.1)}


@dataclass
class Group:
    name: str
    parameters: dict[str, nn.Parameter]
    rate: float | None = None
    factor: float = 1.0


@dataclass
class ToyAttached:
    """Trains all but the norm's weight; remembers a running sum that moves the bias after each step."""

    net: ToyNet
    memory: Tensor = field(default_factory=lambda: torch.zeros(WIDTH))

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.net.named_parameters())

    def groups(self) -> list[Group]:
        found = self.parameters()
        fast = {"norm.bias": found["norm.bias"]}
        return [Group("net", {name: found[name] for name in ("token.weight", "mix.weight", "mix.bias")}), Group("fast", fast, rate=0.05)]

    def begin(self, steps: int) -> None:
        pass

    def running(self, name: str = "") -> list[AbstractContextManager[None]]:
        return [nullcontext()]

    def penalty(self) -> Tensor | None:
        return 1e-3 * self.net.mix.weight.square().sum()

    def after_step(self, step: int) -> None:
        self.memory = 0.9 * self.memory + self.net.mix.bias.detach().float()
        with torch.no_grad():
            self.net.norm.bias.add_(1e-3 * self.memory.to(self.net.norm.bias.dtype))

    def state(self) -> dict[str, Tensor]:
        return {**{name: value.detach() for name, value in self.parameters().items() if value.requires_grad}, "memory": self.memory}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self.parameters().items():
                if value.requires_grad:
                    value.copy_(state[name])
        self.memory = state["memory"].clone()


@dataclass
class Toy:
    """Everything that train() takes."""

    training: Training
    folder: Path
    dtype: torch.dtype = torch.float32
    dropout: float = 0.3
    noise: float = 0.1
    batches: ToyBatches = field(default_factory=ToyBatches)

    def __post_init__(self) -> None:
        seed_all(0)
        self.net = ToyNet(self.dropout).to(self.dtype)
        self.net.norm.weight.requires_grad_(False)
        self.attached, self.objective = ToyAttached(self.net), ToyObjective(self.noise)

    def evaluate(self, final: bool = False) -> dict[str, float]:
        batch = collate(list(range(ROWS)))
        torch.rand(3)  # an evaluation may draw; the run must not notice
        scores = self.net.heads["lm"](self.net.hidden(batch.ids, batch.lengths))[0]
        return {"loss": float(nn.functional.cross_entropy(scores.float(), batch.labels, ignore_index=-1))}

    def run(self, resume: Path | None = None, **options: Any) -> History:
        model: Any = SimpleNamespace(net=self.net)
        parts: dict[str, Any] = {"attached": self.attached, "objective": self.objective, "batches": self.batches}
        return train(model, **parts, training=self.training, folder=self.folder, resume=resume, **{"evaluate": self.evaluate, **options})

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.attached.state().items()}


def go_on(home: Path, options: dict[str, Any]) -> None:
    """Trains from the newest checkpoint, or from the start: what a new process does after the last one was killed."""
    torch.set_num_threads(1)
    Toy(Training(**options), home).run(checkpoint.newest(home / "checkpoints"))
