"""Choices written out and ranked by the language model itself. Liu et al. 2022, arXiv:2205.05638, section 3.2 (T-Few).

No head is added. With beta(y) = 1/T sum_t log p(y_t | x, y_<t), right choice y of the question x and wrong ones y', the loss is the sum of
    L_LM = -beta(y)
    L_UL = -sum_y' sum_t log(1 - p(y'_t | x, y'_<t)) / sum_y' T'          unlikelihood of the wrong choices
    L_LN = -log(exp beta(y) / (exp beta(y) + sum_y' exp beta(y')))        length-normalised ranking
and the choice of the highest beta is predicted. `shots` puts solved training rows before every question (Brown et al. 2020,
arXiv:2005.14165, section 2): without training that is in-context learning.

M tokens of all choices, C choices of all rows
"""

import random
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from typing import Any, ClassVar, NamedTuple

import torch
from tokenizers import Encoding
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from luthier.data.stream import Sample, Stream
from luthier.data.tokenizer import touching
from luthier.objectives._batch import Batch, Example, Reading, Term, quoted
from luthier.objectives._labels import number_of
from luthier.objectives._language import refuse_encoder, token_losses
from luthier.objectives._objective import Objective
from luthier.objectives._pairs import in_targets, pair_inputs, start_of
from luthier.sources.model import Model

SLOT = "{choice}"


@dataclass(frozen=True)
class Rank(Objective):
    """Of an encoder-decoder the encoder reads what stands before the choice, and the end token is part of the choice. What is longer than
    data.length loses its beginning."""

    template: str = "{question} {choice}"  # columns of the row in braces; the choice comes last
    words: dict[str, str] = field(default_factory=dict)  # label -> how it is said, for rows with a label instead of choices
    likelihood: float = 1.0  # weight of L_LM
    unlikelihood: float = 1.0  # of L_UL
    ranking: float = 1.0  # of L_LN
    shots: int = 0  # solved training rows before every question
    context: str = ""  # those rows; left out: drawn by the run's seed

    needs: ClassVar[tuple[str, ...]] = ("question", "choices", "answer")
    encodings: ClassVar[bool] = True
    pairs: ClassVar[bool] = True
    predicts: ClassVar[str] = "labels"
    learns: ClassVar[str] = "room for a choice"
    verified: ClassVar[str] = (
        "the paper's formulas by hand in float64, gradients by finite differences; log-likelihoods of transformers 5.23"
    )

    def __post_init__(self) -> None:
        weights = (self.likelihood, self.unlikelihood, self.ranking)
        if not self.template.endswith(SLOT) or self.template.count(SLOT) > 1 or len(self.template) == len(SLOT):
            raise ValueError(f"objective rank needs a template with {SLOT} once, at its end and behind some text, not {self.template!r}")
        if min(weights) < 0 or not any(weights) or self.shots < 0 or len(self.words) == 1:
            raise ValueError(f"objective rank needs weights >= 0, one of them above, shots >= 0 and two words at least, not {self}")

    def prepare(self, stream: Stream) -> "Rank":
        if not self.shots or self.context:
            return self
        rows = [(part, int(index)) for part in stream.parts for index in part.train]
        if self.shots > len(rows):
            raise ValueError(f"objective rank: shots={self.shots}, and there are {len(rows)} training rows")
        chosen = random.Random(f"shots of {stream.seed}").sample(rows, self.shots)
        asked = [self._asked(Sample(part[index], 0, index, 0)) for part, index in chosen]
        return replace(self, context="".join(f"{before}{choices[answer]}\n\n" for before, choices, answer in asked))

    def check(self, model: Model) -> None:
        super().check(model)
        refuse_encoder(model, self.kind)

    def read(self, sample: Sample, model: Model) -> Reading:
        before, choices, _ = self._asked(sample)
        before = self.context + before
        return Reading(sample, [before.rstrip(), *choices] if model.encoder_decoder else [before + choice for choice in choices])

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        before, _, answer = self._asked(reading.sample)
        if model.encoder_decoder:
            found = [_pair(reading.codes[0].ids, code.ids, model, length) for code in reading.codes[1:]]
        else:
            found = [_document(code, len(self.context + before), model, length) for code in reading.codes]
        if any(choice is None for choice in found):
            return []
        written: list[Written] = [choice for choice in found if choice is not None]
        starts = accumulate((len(choice.ids) for choice in written), initial=0)
        return [
            Example(
                ids=list(chain.from_iterable(choice.ids for choice in written)),
                at={
                    "lm": [start + choice.at + i for start, choice in zip(starts, written, strict=False) for i in range(len(choice.tokens))]
                },
                labels={"lm": list(chain.from_iterable(choice.tokens for choice in written))},
                lengths=tuple(chain.from_iterable(choice.lengths for choice in written)),
                reference=self._named(answer),
                note=Note(answer, tuple(len(choice.tokens) for choice in written), model.encoder_decoder),
                sizes={"lm": 1, "unlikely": 1, "rank": 1},
            )
        ]

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return pair_inputs(batch) if batch.examples[0].note.pair else super().inputs(batch)

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        loss_M, owner_M, size_C, right_C = _read(hidden, heads, batch)
        row_C = torch.repeat_interleave(torch.tensor([len(example.note.sizes) for example in batch.examples], device=loss_M.device))
        beta_C = _added(-loss_M, owner_M, len(size_C)) / size_C
        unlikely_C = _added(-_log_of_rest(-loss_M), owner_M, len(size_C)).masked_fill(right_C, 0)
        wrong_R = _added(size_C.masked_fill(right_C, 0), row_C, batch.rows)
        unlikely_R = _added(unlikely_C, row_C, batch.rows) / wrong_R.clamp(min=1)
        answer_R = torch.tensor([example.note.answer for example in batch.examples], device=loss_M.device)
        return {
            "lm": Term(-beta_C[right_C].sum(), batch.rows, self.likelihood),
            "unlikely": Term(unlikely_R.sum(), batch.rows, self.unlikelihood),
            "rank": Term(F.cross_entropy(_by_row(beta_C, batch), answer_R, reduction="sum"), batch.rows, self.ranking),
        }

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[Any]:
        return [self._named(i) for i in _likelihoods(hidden, heads, batch).argmax(-1).tolist()]

    def sure(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[float | None]:
        return _likelihoods(hidden, heads, batch).softmax(-1).amax(-1).tolist()

    def _asked(self, sample: Sample) -> tuple[str, list[str], int]:
        """What stands before the choice, the choices, and which is right."""
        if self.words and "label" not in sample.row:
            raise ValueError(f"objective rank with words needs rows with a label, and these have {', '.join(sample.row)}: {quoted(sample)}")
        if self.words:
            choices, answer = list(self.words.values()), number_of(sample.row["label"], tuple(self.words), sample)
        else:
            _, choices, answer = self.fields(sample)
        try:
            before = self.template.removesuffix(SLOT).format_map(sample.row)
        except KeyError as error:
            there = f"the row has {', '.join(sample.row)}: {quoted(sample)}"
            raise ValueError(f"the template of objective rank names {{{error.args[0]}}}, and {there}") from None
        if not 0 <= answer < len(choices) or len(choices) < 2:
            raise ValueError(f"the answer is number {answer}, from 0, of {len(choices)} choices: {quoted(sample)}")
        return before, choices, answer

    def _named(self, number: int) -> Any:
        return list(self.words)[number] if self.words else number


class Note(NamedTuple):
    """Of one row: the right choice, tokens of each choice, and whether each stands in a document of its own behind its question's."""

    answer: int
    sizes: tuple[int, ...]
    pair: bool


class Written(NamedTuple):
    """One choice with what is read before it. at: the position whose state predicts its first token."""

    ids: list[int]
    at: int
    tokens: list[int]
    lengths: tuple[int, ...]


def _document(code: Encoding, before: int, model: Model, length: int) -> Written | None:
    """For a decoder: question and choice in one text, whose choice begins at character `before`."""
    assert model.tokenizer is not None
    start, _ = model.tokenizer.frame()
    ((first, _),) = touching(code.offsets, [(before, before + 1)])
    kept = max(0, first - max(0, len(start) + len(code.ids) - 1 - length))  # of the question, its end
    ids = start + code.ids[first - kept :]
    at = len(start) + kept - 1
    tokens = ids[at + 1 :]
    return Written(ids[:-1], at, tokens, (len(ids) - 1,)) if tokens and at >= 0 and len(ids) - 1 <= length else None


def _pair(question: list[int], choice: list[int], model: Model, length: int) -> Written | None:
    """For an encoder-decoder: the end of the question, and the choice behind the start token."""
    assert model.tokenizer is not None
    end = [] if model.tokenizer.eos is None else [model.tokenizer.eos]
    source, target = question[-(length - len(end)) :] + end, choice + end
    if not question or not choice or len(target) > length:
        return None
    return Written([*source, start_of(model), *target[:-1]], len(source), target, (len(source), len(target)))


def _read(hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-log p of each token (M,), the choice it is of (M,); tokens of each choice (C,), and whether it is right (C,)."""
    loss_M = token_losses(hidden, heads, in_targets(batch) if batch.examples[0].note.pair else batch, "lm")
    notes: list[Note] = [example.note for example in batch.examples]
    size_C = torch.tensor(list(chain.from_iterable(note.sizes for note in notes)), device=loss_M.device)
    right_C = torch.tensor([i == note.answer for note in notes for i in range(len(note.sizes))], device=loss_M.device)
    return loss_M, torch.repeat_interleave(size_C), size_C, right_C


def _likelihoods(hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> Tensor:
    """beta of every choice, (rows, most choices)."""
    loss_M, owner_M, size_C, _ = _read(hidden, heads, batch)
    return _by_row(_added(-loss_M, owner_M, len(size_C)) / size_C, batch)


def _added(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """The sum of the values of each owner, (count,)."""
    return values.new_zeros(count).index_add(0, owner, values)


def _by_row(beta_C: Tensor, batch: Batch) -> Tensor:
    """(rows, most choices); -inf where a row has fewer."""
    parts = beta_C.split([len(example.note.sizes) for example in batch.examples])
    return pad_sequence(list(parts), batch_first=True, padding_value=-torch.inf)


def _log_of_rest(log_p: Tensor) -> Tensor:
    """log(1 - p), at least the log of the smallest difference that the type can tell; no gradient below."""
    return (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps).log()
