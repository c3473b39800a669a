"""Classification of a text or a pair of texts by one state of it. Devlin et al. 2018, arXiv:1810.04805, section 4.1.

Encoders read the state of [CLS], decoders that of the last token (Radford et al. 2018, section 3.2).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from luthier.data.stream import Sample, Stream
from luthier.objectives._auxiliary import auxiliary, check_auxiliary, with_next_tokens
from luthier.objectives._batch import Batch, Example, Reading, Term, wide
from luthier.objectives._labels import class_loss, every_row, number_of, sorted_labels
from luthier.objectives._objective import Objective
from luthier.objectives._sentence import added, sentence, together
from luthier.sources.model import Model


@dataclass(frozen=True)
class Classify(Objective):
    """Pairs of more than data.length tokens are cut, the longer text first."""

    labels: tuple[str, ...] = ()  # names in the order of the head's rows; left out: those of the data, sorted
    lm_weight: float = 0.0  # of the auxiliary language-model loss, decoders only; GPT-1: 0.5 (section 3.2, eq. 5)
    both_orders: bool = False  # a pair is read in both orders and the two states are added (GPT-1, section 3.3, similarity)

    needs: ClassVar[tuple[str, ...]] = ("text", "label")
    encodings: ClassVar[bool] = True
    predicts: ClassVar[str] = "labels"
    stack: ClassVar[str] = "decoder"
    verified: ClassVar[str] = "transformers 5.23 BertForSequenceClassification's loss"

    def prepare(self, stream: Stream) -> "Classify":
        return self if self.labels else replace(self, labels=sorted_labels((row["label"] for row in every_row(self, stream)), "label"))

    def heads(self) -> dict[str, int]:
        return {"classify": len(self.labels)}

    def check(self, model: Model) -> None:
        super().check(model)
        check_auxiliary(self.lm_weight, model, self.kind)

    def read(self, sample: Sample, model: Model) -> Reading:
        text, _ = self.fields(sample)
        texts = [text, sample.row["pair"]] if "pair" in sample.row else [text]
        return Reading(sample, [*texts, *reversed(texts)] if self.both_orders and len(texts) == 2 else texts)

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        label, codes = number_of(reading.sample.row["label"], self.labels, reading.sample), reading.codes
        orders = [codes[:2], codes[2:]] if len(codes) == 4 else [codes]
        example = together("classify", label, [sentence("classify", label, order, model, length) for order in orders])
        example.reference = self.labels[label]
        return [with_next_tokens(example) if self.lm_weight else example]

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        terms = {"classify": class_loss(heads["classify"], added(hidden, batch, "classify"), batch.labels["classify"])}
        return terms | auxiliary(hidden, heads, batch, self.lm_weight)

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[str]:
        return [self.labels[i] for i in heads["classify"](added(hidden, batch, "classify")).argmax(-1).tolist()]

    def sure(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[float | None]:
        return wide(heads["classify"](added(hidden, batch, "classify"))).softmax(-1).amax(-1).tolist()
