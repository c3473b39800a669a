"""Labels by name, found in the data or given, and the loss of choosing among them.

M sentences or tokens, D width, L labels
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from luthier.data.stream import Sample, Stream
from luthier.lookup import suggest
from luthier.objectives._batch import Term, quoted, wide
from luthier.objectives._objective import Objective


def every_row(objective: Objective, stream: Stream) -> Iterator[dict]:
    """All rows, those of rare files and the held-out ones too; a sentence where one is not what the objective needs."""
    trained = (part[int(index)] for part in stream.parts for index in part.train)
    for index, row in enumerate(chain(trained, stream.held_out)):
        objective.fields(Sample(row, 0, index, 0))
        yield row


def sorted_labels(values: Iterable[Any], field: str) -> tuple[str, ...]:
    """Their names, once each, in an order that is the same for every run: numbers by size, words by the alphabet."""
    names = {str(value) for value in values}
    if len(names) < 2:
        raise ValueError(f"a task needs two labels at least to tell apart; the data has {', '.join(names) or 'none'} under {field!r}")
    return tuple(sorted(names, key=lambda name: (int(name), "") if re.fullmatch(r"-?\d+", name) else (0, name)))


def number_of(label: Any, labels: tuple[str, ...], sample: Sample) -> int:
    """The place of a label among the known ones."""
    if str(label) not in labels:
        known = f"the {len(labels)} labels of this objective"
        raise ValueError(f"the label {str(label)!r} is not among {known}{suggest(str(label), labels)}: {quoted(sample)}")
    return labels.index(str(label))


def class_loss(head: nn.Module, state_MD: Tensor, label_M: Tensor) -> Term:
    """Summed cross-entropy of a label head."""
    return Term(F.cross_entropy(wide(head(state_MD)), label_M, reduction="sum"), len(label_M))
