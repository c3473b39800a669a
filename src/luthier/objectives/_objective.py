"""What an objective is: which strings a row is read as, what is learnt in them, the loss, and a prediction to measure.

A run calls, in this order:
    objective = objective.prepare(stream)       label names found in the data, where there are any
    net.add_head(kind, labels)                  for each of objective.heads() that the net lacks
    batches = objective.batches(stream, model, size, length)
    for batch in next(batches):
        hidden = objective.forward(net, batch)
        terms = objective.loss(hidden, net.heads, batch)     sum / (count over the step) * weight, added up

N tokens, D width, M labelled positions
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from luthier.core.transformer import Net
from luthier.data.stream import Sample, Stream
from luthier.objectives._batch import Batch, Example, Reading, Size, Term, quoted
from luthier.objectives._batches import Batches
from luthier.sources.model import Model


@dataclass(frozen=True)
class Objective(ABC):
    """The contract. Fields of the dataclasses below it are the YAML keys under `objective:`."""

    needs: ClassVar[tuple[str, ...]] = ()  # keys every row must have
    predicts: ClassVar[str] = "tokens"  # what predict() finds: tokens, labels, tags, spans or values
    encodings: ClassVar[bool] = False  # whether examples() works on reading.codes, which take longer than reading.ids
    pairs: ClassVar[bool] = False  # whether it teaches an encoder-decoder: one text is read, another written
    stack: ClassVar[str] = ""  # of an encoder-decoder: whose states of the text it reads, "encoder" or "decoder"; "": it takes none
    together: ClassVar[bool] = False  # whether the loss is no sum over examples, so that a step's examples need one forward pass
    pictures: ClassVar[bool] = False  # whether it reads a row's pictures
    learns: ClassVar[str] = "text"  # what a row lacks when it has nothing to learn

    def prepare(self, stream: Stream) -> "Objective":
        """This objective with what it takes from the data filled in (dataclasses.replace); call it before anything else."""
        return self

    def heads(self) -> dict[str, int]:
        """Heads beside "lm" that the net must have, and how many labels each."""
        return {}

    def check(self, model: Model) -> None:
        """Raise ValueError where the model cannot learn this."""
        if untrained := getattr(getattr(model.net, "config", None), "untrained", ""):
            raise ValueError(f"{model.source}: {untrained}")
        if model.tokenizer is None:
            raise ValueError(f"{model.source} has no tokenizer; name one: model: {{..., tokenizer: PATH}}")
        if model.encoder_decoder and not self.pairs and not self.stack:
            raise ValueError(f"objective {self.kind} needs a single stack; {model.source} is an encoder-decoder, which takes translate")

    @abstractmethod
    def read(self, sample: Sample, model: Model) -> Reading:
        """The strings that the sample is read as, and which of their characters are learnt."""

    @abstractmethod
    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        """What is learnt from a sample in documents of at most `length` tokens; [] for nothing."""

    def forward(self, net: Net, batch: Batch) -> Any:
        """What `loss` and `predict` are given: the final hidden states; objectives of several passes write their own."""
        return net.hidden(**self.inputs(batch))

    @abstractmethod
    def loss(self, hidden: Any, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        """Named terms from hidden (1, N, D), the final hidden states."""

    @abstractmethod
    def predict(self, hidden: Any, heads: nn.ModuleDict, batch: Batch) -> list[Any]:
        """One prediction per example, in the form of its reference."""

    def sure(self, hidden: Any, heads: nn.ModuleDict, batch: Batch) -> list[float | None]:
        """How probable the model takes each prediction to be, 0 to 1; None where it does not say."""
        return [None] * batch.rows

    def references(self, batch: Batch) -> list[Any]:
        return [example.reference for example in batch.examples]

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Keyword arguments of net.hidden."""
        inputs = {"ids": batch.ids, "lengths": batch.lengths, **batch.extra}
        if batch.examples and batch.examples[0].stack:
            inputs["stack"] = batch.examples[0].stack
        return inputs if batch.prompts is None else {**inputs, "prompts": batch.prompts}

    def batches(self, stream: Stream, model: Model, size: Size, length: int) -> Batches:
        return Batches(self, stream, model, size, length)

    def nothing(self, rows: int, length: int) -> str:
        """The sentence for data in which no row has anything to learn."""
        return f"none of the {rows} rows has {self.learns} within data.length={length} tokens; raise it, or look at `luthier data inspect`"

    @property
    def kind(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    def fields(self, sample: Sample) -> tuple[Any, ...]:
        """The values of the keys in `needs`, or a sentence on what the row has instead."""
        missing = [key for key in self.needs if key not in sample.row]
        if missing:
            raise ValueError(
                f"objective {self.kind} needs rows with {', '.join(self.needs)}, and these have {', '.join(sample.row)}: {quoted(sample)}; "
                "choose another objective, or say which column is which in data.columns"
            )
        return tuple(sample.row[key] for key in self.needs)
