"""What a model makes of each held-out row: its loss, and what it says where something else was right.

With these entries two runs are compared pair by pair, and every measure that is a mean over rows, or follows from labels and predictions, is
worked out again.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from luthier.evaluation._measure import Answer, go_over, write_answers
from luthier.objectives._batch import Batch, Example, collate, once
from luthier.objectives._objective import Objective
from luthier.sources.model import Model

TOLD = ("labels", "tags", "values", "spans")  # what an objective predicts that is worth keeping: not the token at each position


@dataclass
class Entries:
    """One entry for each row that has something to learn: row, loss (nats, mean over its labels), labels (how many they are).

    Where the objective predicts something of a row, label, predicted, and score, the probability of what was predicted, or None; where the
    model wrote an answer, reference and written. A loss that is no sum over rows is left out.
    """

    found: dict[int, dict[str, Any]] = field(default_factory=dict)
    sums: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0]))

    def take(self, model: Model, objective: Objective, states: Any, batch: Batch) -> None:
        """What the model makes of a batch, from its states."""
        told = said(model, objective, states, batch) if objective.predicts in TOLD else [{}] * batch.rows
        for example, entry in zip(batch.examples, told, strict=True):
            self.found.setdefault(example.row, {"row": example.row} | entry)
        for example, (nats, labels) in zip(batch.examples, losses(model, objective, states, batch.examples), strict=False):
            self.sums[example.row][0] += nats
            self.sums[example.row][1] += labels

    def wrote(self, answers: Sequence[str], references: Sequence[str]) -> None:
        for i, (written, reference) in enumerate(zip(answers, references, strict=True)):
            self.found.setdefault(i, {"row": i}).update(reference=reference, written=written)

    @property
    def rows(self) -> list[dict[str, Any]]:
        losses = {row: {"loss": nats / max(1, labels), "labels": labels} for row, (nats, labels) in self.sums.items()}
        return [self.found[row] | losses.get(row, {}) for row in sorted(self.found)]


def predictions(
    model: Model, objective: Objective, rows: Sequence[dict], length: int = 1024, micro_tokens: int = 4096, answer: Answer | None = None
) -> list[dict[str, Any]]:
    """The entries of rows, where no measurement that has just been made has them. answer: how the model writes answers."""
    entries = Entries()
    go_over(model, objective, once(objective, rows, model, length, micro_tokens), predicting=False, entries=entries)
    if answer is not None:
        entries.wrote(*write_answers(model, rows, answer))
    return entries.rows


def said(model: Model, objective: Objective, states: Any, batch: Batch) -> list[dict[str, Any]]:
    """By example: what was right, what was predicted, and how sure the model was."""
    parts = (objective.references(batch), objective.predict(states, model.net.heads, batch), objective.sure(states, model.net.heads, batch))
    return [{"label": label, "predicted": predicted, "score": score} for label, predicted, score in zip(*parts, strict=True)]


def losses(model: Model, objective: Objective, states: Any, examples: Iterable[Example]) -> list[tuple[float, int]]:
    """(nats, labels) of each example, from the states of all of them together; [] where the loss is of all of them together too."""
    if objective.together:
        return []
    found, start = [], 0
    for example in examples:
        alone = collate([example]).to(model.device)
        if isinstance(states, Tensor):
            inputs = objective.inputs(alone)
            stop = start + inputs.get("decoder_ids", inputs["ids"]).shape[1]
            own, start = states[:, start:stop], stop
        else:  # of several passes: once more, for this one
            own = objective.forward(model.net, alone)
        terms = objective.loss(own, model.net.heads, alone).values()
        found.append((sum(float(term.sum) * term.weight for term in terms), sum(term.count for term in terms)))
    assert not isinstance(states, Tensor) or start == states.shape[1], f"{states.shape[1]} states for {start} tokens"
    return found
