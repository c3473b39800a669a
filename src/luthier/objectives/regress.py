"""A number for a text or a pair of texts, by squared error. Devlin et al. 2018, arXiv:1810.04805, section 4.1 (STS-B)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from luthier.data.stream import Sample
from luthier.objectives._batch import Batch, Example, Reading, Term, quoted, wide
from luthier.objectives._objective import Objective
from luthier.objectives._sentence import sentence
from luthier.sources.model import Model


@dataclass(frozen=True)
class Regress(Objective):
    """(score - target)^2 for each row."""

    needs: ClassVar[tuple[str, ...]] = ("text", "score")
    encodings: ClassVar[bool] = True
    predicts: ClassVar[str] = "values"
    stack: ClassVar[str] = "decoder"
    verified: ClassVar[str] = "transformers 5.23 BertForSequenceClassification's loss, one label"

    def heads(self) -> dict[str, int]:
        return {"regress": 1}

    def read(self, sample: Sample, model: Model) -> Reading:
        text, _ = self.fields(sample)
        return Reading(sample, [text, sample.row["pair"]] if "pair" in sample.row else [text])

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        score = reading.sample.row["score"]
        try:
            target = float(score)
        except (TypeError, ValueError):
            raise ValueError(f"the score {score!r} is not a number: {quoted(reading.sample)}") from None
        example = sentence("regress", target, reading.codes, model, length)
        example.reference = target
        return [example]

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        target = batch.labels["regress"]
        score = wide(_scores(hidden, heads, batch))
        return {"regress": Term(F.mse_loss(score, target.to(score.dtype), reduction="sum"), len(target))}

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[float]:
        return _scores(hidden, heads, batch).tolist()


def _scores(hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> Tensor:
    return heads["regress"](hidden[0, batch.at["regress"]]).squeeze(-1)
