"""Where methods err: accuracy by class, and what is taken for what; over all seeds of a method."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.comparing.read import Outcome
from luthier.comparing.summary import Comparison

CLASSES = 60  # more are no classes
MATRIX = 12  # classes that fit into a matrix


@dataclass(frozen=True)
class Errors:
    """classes: the most frequent first, with how often each is right in one run; counts: by method, (right, predicted) -> times."""

    classes: Mapping[str, int]
    counts: Mapping[str, Counter[tuple[str, str]]]

    def accuracy(self, method: str, label: str) -> float | None:
        total = sum(times for (right, _), times in self.counts[method].items() if right == label)
        return self.counts[method][label, label] / total if total else None

    def row(self, method: str, label: str) -> list[float]:
        """Shares of the predictions where `label` is right, in the order of the classes; beyond them the rest."""
        found = [self.counts[method][label, other] for other in self.classes]
        total = sum(times for (right, _), times in self.counts[method].items() if right == label)
        return [times / max(1, total) for times in found]

    def swaps(self, method: str, most: int = 8) -> list[tuple[str, str, int]]:
        """The most frequent errors: (right, predicted, times)."""
        return [(*pair, times) for pair, times in self.counts[method].most_common() if pair[0] != pair[1]][:most]


def errors(found: Comparison) -> Errors | None:
    """None where the runs do not choose among classes, or not among the same ones."""
    counts, sizes = {}, Counter()
    for each in found.methods:
        pairs = [pair for cell in each.cells for pair in chosen(cell)]
        if not pairs:
            continue
        counts[each.name] = Counter(pairs)
        sizes |= Counter({label: times // len(each.cells) for label, times in Counter(right for right, _ in pairs).items()})
    labels = {label for each in counts.values() for pair in each for label in pair}
    if not counts or not 2 <= len(labels) <= CLASSES:
        return None
    return Errors(dict(sizes.most_common()) | {label: 0 for label in sorted(labels) if label not in sizes}, counts)


def chosen(cell: Outcome) -> list[tuple[str, str]]:
    """(right, predicted) of each held-out row, or of each of its tags."""
    try:
        lines = [line for line in cell.predictions() if "label" in line and "predicted" in line]
    except ValueError:
        return []
    pairs = [pair for line in lines for pair in both(line["label"], line["predicted"])]
    return [(str(right), str(predicted)) for right, predicted in pairs]


def both(right: object, predicted: object) -> Sequence[tuple[object, object]]:
    if isinstance(right, list) and isinstance(predicted, list):
        return list(zip(right, predicted, strict=False))
    return [] if isinstance(right, float) or isinstance(predicted, float) else [(right, predicted)]
