"""Multiple choice: a softmax over one score for each pair of question and choice. Devlin et al. 2018, arXiv:1810.04805, section 4.4."""

from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from luthier.data.stream import Sample
from luthier.objectives._auxiliary import auxiliary, check_auxiliary, with_next_tokens
from luthier.objectives._batch import Batch, Example, Reading, Term, quoted, wide
from luthier.objectives._objective import Objective
from luthier.objectives._sentence import sentence, together
from luthier.sources.model import Model


@dataclass(frozen=True)
class Choose(Objective):
    """The choices of a question stay together in one batch; predictions are places in the list of choices, counted from 0."""

    lm_weight: float = 0.0  # of the auxiliary language-model loss, decoders only; GPT-1: 0.5

    needs: ClassVar[tuple[str, ...]] = ("question", "choices", "answer")
    encodings: ClassVar[bool] = True
    predicts: ClassVar[str] = "labels"
    stack: ClassVar[str] = "decoder"
    verified: ClassVar[str] = "transformers 5.23 BertForMultipleChoice's loss"

    def heads(self) -> dict[str, int]:
        return {"choose": 1}

    def check(self, model: Model) -> None:
        super().check(model)
        check_auxiliary(self.lm_weight, model, self.kind)

    def read(self, sample: Sample, model: Model) -> Reading:
        question, choices, _ = self.fields(sample)
        return Reading(sample, list(chain.from_iterable((question, choice) for choice in choices)))

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        answer, codes = reading.sample.row["answer"], reading.codes
        documents = [sentence("choose", 0, codes[i : i + 2], model, length) for i in range(0, len(codes), 2)]
        if not 0 <= answer < len(documents):
            raise ValueError(f"the answer is number {answer}, from 0, of {len(documents)} choices: {quoted(reading.sample)}")
        example = together("choose", answer, documents)
        example.labels, example.reference = {"choose": [answer]}, answer  # of one choice alone, too
        return [with_next_tokens(example) if self.lm_weight else example]

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        label = batch.labels["choose"]
        terms = {"choose": Term(F.cross_entropy(_scores(hidden, heads, batch), label, reduction="sum"), len(label))}
        return terms | auxiliary(hidden, heads, batch, self.lm_weight)

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[int]:
        return _scores(hidden, heads, batch).argmax(-1).tolist()

    def sure(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[float | None]:
        return _scores(hidden, heads, batch).softmax(-1).amax(-1).tolist()


def _scores(hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> Tensor:
    """(questions, most choices); -inf where a question has fewer."""
    score = wide(heads["choose"](hidden[0, batch.at["choose"]]).squeeze(-1))
    parts = score.split([len(example.documents) for example in batch.examples])
    return pad_sequence(list(parts), batch_first=True, padding_value=-torch.inf)
