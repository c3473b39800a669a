"""What a model scores on held-out rows: the objective's loss, and the measures that fit what the objective finds.

Likelihoods and predictions come out of one pass over the rows, packed as in training; texts are written by the model, answer by answer.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from rich.console import Console
from rich.progress import track

from luthier.objectives._batch import Batch, once
from luthier.objectives._objective import Objective
from luthier.sources.model import Model

if TYPE_CHECKING:
    from luthier.evaluation._predictions import Entries

Answer = Callable[[Sequence[list[dict]]], list[str]]  # conversations, each ending with the user, to answers


class Measure(Protocol):
    """A plug-in of this shelf. of: what it compares, labels, tags, spans, texts, values or likelihood."""

    of: ClassVar[str]

    def score(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Figures by name."""
        ...


@dataclass
class Tally:
    """What one pass over the rows leaves behind."""

    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # term -> weighted loss
    counts: Counter[str] = field(default_factory=Counter)  # term -> labels
    nats: list[float] = field(default_factory=list)  # per batch
    sizes: list[tuple[int, int]] = field(default_factory=list)  # per batch: labels, and bytes of their text
    predictions: list[Any] = field(default_factory=list)
    references: list[Any] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """As training computes it for one step that holds all rows."""
        return sum(self.sums[term] / max(1, self.counts[term]) for term in self.sums)


def measure(
    model: Model,
    objective: Objective,
    rows: Sequence[dict],
    measures: Sequence[Measure] = (),
    length: int = 1024,
    micro_tokens: int = 4096,
    answer: Answer | None = None,
    console: Console | None = None,
    entries: "Entries | None" = None,
) -> dict[str, float]:
    """The loss on normalised rows, as {"loss": nats per label}, and the figures of every measure.

    answer: how the model writes answers, needed by measures of texts. console: shows progress there. The net's training mode is kept.
    entries: takes what the model makes of each row; of adapters in parallel, what the first does.
    Of adapters that run in parallel each is measured for itself, and the figures are their means; rows that name one are read by that one.
    """
    for wanted in measures:
        check_fit(wanted, objective, answer is not None)
    each = []
    free = any(not row.get("adapter") for row in rows)
    for running in model.running()[: None if free else 1]:
        with running:
            each.append(_measured(model, objective, rows, measures, length, micro_tokens, answer, console, None if each else entries))
    return {name: sum(figures[name] for figures in each) / len(each) for name in each[0]} if len(each) > 1 else each[0]


def _measured(
    model: Model,
    objective: Objective,
    rows: Sequence[dict],
    measures: Sequence[Measure],
    length: int,
    micro_tokens: int,
    answer: Answer | None,
    console: Console | None,
    entries: "Entries | None",
) -> dict[str, float]:
    predicting = any(wanted.of == objective.predicts for wanted in measures)
    batches = shown(once(objective, rows, model, length, micro_tokens), "held-out rows", console)
    tally = go_over(model, objective, batches, predicting, entries)
    written: tuple[list[str], list[str]] | None = None
    figures = {"loss": tally.loss}
    for wanted in measures:
        if wanted.of == "likelihood":
            figures |= wanted.score(tally.nats, tally.sizes)
        elif wanted.of == objective.predicts:
            figures |= wanted.score(tally.predictions, tally.references)
        else:
            assert answer is not None
            written = written or write_answers(model, rows, answer)
            figures |= wanted.score(*written)
    if entries is not None and written is not None:
        entries.wrote(*written)
    return figures


def held_out_loss(model: Model, objective: Objective, rows: Sequence[dict], length: int = 1024, micro_tokens: int = 4096) -> float:
    """Nats per label on normalised rows."""
    return measure(model, objective, rows, (), length, micro_tokens)["loss"]


def check_fit(wanted: Measure, objective: Objective, answers: bool) -> None:
    """Raise ValueError where the objective has nothing that the measure could compare."""
    kind, found = type(wanted).__module__.rpartition(".")[2], f"objective {objective.kind} predicts {objective.predicts}"
    if wanted.of == "likelihood":
        if objective.predicts != "tokens":
            raise ValueError(f"{kind} is for objectives that predict tokens (causal, chat, masked), and {found}; choose another measure")
    elif wanted.of != objective.predicts and not (answers and "messages" in objective.needs and wanted.of in ("texts", "spans", "labels")):
        raise ValueError(f"{kind} compares {wanted.of}, and {found}; choose another measure")


def go_over(model: Model, objective: Objective, batches: Iterable[Batch], predicting: bool, entries: "Entries | None" = None) -> Tally:
    """One pass: losses, and predictions and entries where they are asked for."""
    tally = Tally()
    with evaluating(model):
        for batch in batches:
            here = batch.to(model.device)
            with asked_for(model, batch):
                hidden = objective.forward(model.net, here)
                terms = objective.loss(hidden, model.net.heads, here)
                if predicting:
                    tally.predictions += objective.predict(hidden, model.net.heads, here)
                    tally.references += objective.references(batch)
                if entries is not None:
                    entries.take(model, objective, hidden, here)
            for name, term in terms.items():
                tally.sums[name] += float(term.sum) * term.weight
                tally.counts[name] += term.count
            if objective.predicts == "tokens":
                tally.nats.append(sum(float(term.sum) for term in terms.values()))
                tally.sizes.append((sum(term.count for term in terms.values()), size_bytes(batch, model)))
    return tally


def asked_for(model: Model, batch: Batch) -> AbstractContextManager[None]:
    """Inside, the adapter that the batch's rows name is at work."""
    return model.running(batch.adapter)[0] if batch.adapter else nullcontext()


def size_bytes(batch: Batch, model: Model) -> int:
    """Of the text that the labels are, as UTF-8; special tokens have none."""
    assert model.tokenizer is not None
    texts = (model.tokenizer.decode(ids) for example in batch.examples for ids in example.labels.values())
    return sum(len(text.encode("utf-8")) for text in texts)


def write_answers(model: Model, rows: Sequence[dict], answer: Answer) -> tuple[list[str], list[str]]:
    """What the model says in the place of each row's last answer, and that answer."""
    cut = [split(row["messages"]) for row in rows]
    answers = model.each_under([row.get("adapter", "") for row in rows], lambda mine: answer([cut[i][0] for i in mine]))
    return [text.strip() for text in answers], [reference.strip() for _, reference in cut]


def split(messages: list[dict]) -> tuple[list[dict], str]:
    """A conversation as what was asked and what the assistant last said; "" where it says nothing."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    return (messages, "") if last is None else (messages[:last], messages[last]["content"])


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Inside, dropout is off and no gradient is kept."""
    training = model.net.training
    model.net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.net.train(training)


def shown(batches: Iterable[Batch], title: str, console: Console | None) -> Iterable[Batch]:
    if console is None:
        return batches
    return track(batches, title, console=console, transient=True, disable=not console.is_terminal)
