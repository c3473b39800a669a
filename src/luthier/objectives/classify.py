"""Classification of a text or a pair of texts by one state of it. Devlin et al. 2018, arXiv:1810.04805, section 4.1.

Encoders read the state of [CLS], decoders that of the last token (Radford et al. 2018, section 3.2).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from luthier.data.stream import Sample, Stream
from luthier.objectives._batch import Batch, Example, Reading, Term
from luthier.objectives._labels import class_loss, every_row, number_of, sorted_labels
from luthier.objectives._objective import Objective
from luthier.objectives._sentence import sentence
from luthier.sources.model import Model


@dataclass(frozen=True)
class Classify(Objective):
    """Pairs of more than data.length tokens are cut, the longer text first."""

    labels: tuple[str, ...] = ()  # names in the order of the head's rows; left out: those of the data, sorted

    needs: ClassVar[tuple[str, ...]] = ("text", "label")
    encodings: ClassVar[bool] = True
    predicts: ClassVar[str] = "labels"
    verified: ClassVar[str] = "transformers 5.23 BertForSequenceClassification's loss"

    def prepare(self, stream: Stream) -> "Classify":
        return self if self.labels else replace(self, labels=sorted_labels((row["label"] for row in every_row(self, stream)), "label"))

    def heads(self) -> dict[str, int]:
        return {"classify": len(self.labels)}

    def read(self, sample: Sample, model: Model) -> Reading:
        text, _ = self.fields(sample)
        return Reading(sample, [text, sample.row["pair"]] if "pair" in sample.row else [text])

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        label = number_of(reading.sample.row["label"], self.labels, reading.sample)
        example = sentence("classify", label, reading.codes, model, length)
        example.reference = self.labels[label]
        return [example]

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        return {"classify": class_loss(heads["classify"], hidden[0, batch.at["classify"]], batch.labels["classify"])}

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[str]:
        return [self.labels[i] for i in heads["classify"](hidden[0, batch.at["classify"]]).argmax(-1).tolist()]
