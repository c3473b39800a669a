"""A label for every word, read at its first piece. Devlin et al. 2018, arXiv:1810.04805, section 5.3.

Words come separated (Chinese: characters); each is tokenised by itself.
"""

from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar, Literal

from torch import Tensor, nn

from luthier.data.stream import Sample, Stream
from luthier.data.tokenizer import Tokenizer
from luthier.objectives._batch import Batch, Example, Reading, Term, quoted
from luthier.objectives._labels import class_loss, every_row, number_of, sorted_labels
from luthier.objectives._objective import Objective
from luthier.sources.model import Model

_IDEOGRAPHIC = (("\u2e80", "\u9fff"), ("\uf900", "\ufaff"), ("\uff00", "\uffef"))  # kana among them, and full-width signs


@dataclass(frozen=True)
class Tag(Objective):
    """A row of more than data.length tokens is cut between words into several documents, so that every word gets its label."""

    pieces: Literal["first", "all"] = "first"  # which pieces of a word are learnt; predictions are read at the first
    labels: tuple[str, ...] = ()  # names in the order of the head's rows; left out: those of the data, sorted

    needs: ClassVar[tuple[str, ...]] = ("tokens", "tags")
    predicts: ClassVar[str] = "tags"
    learns: ClassVar[str] = "a word"
    stack: ClassVar[str] = "encoder"
    verified: ClassVar[str] = "transformers 5.23 BertForTokenClassification's loss"

    def prepare(self, stream: Stream) -> "Tag":
        if self.labels:
            return self
        return replace(self, labels=sorted_labels(chain.from_iterable(row["tags"] for row in every_row(self, stream)), "tags"))

    def heads(self) -> dict[str, int]:
        return {"tag": len(self.labels)}

    def read(self, sample: Sample, model: Model) -> Reading:
        words, tags = self.fields(sample)
        if len(words) != len(tags):
            raise ValueError(f"{len(words)} words and {len(tags)} tags in one row; every word needs one: {quoted(sample)}")
        assert model.tokenizer is not None
        return Reading(sample, _spaced(words) if _writes_spaces(model.tokenizer) else list(words))

    def examples(self, reading: Reading, model: Model, length: int) -> list[Example]:
        if not reading.ids:
            return []
        assert model.tokenizer is not None
        start, end = model.tokenizer.frame()
        blank = [next(i for i in (model.tokenizer.unk, model.tokenizer.pad, 0) if i is not None)]  # for words the tokenizer drops
        words = [(piece or blank)[: length - len(start) - len(end)] for piece in reading.ids]
        tags = [number_of(tag, self.labels, reading.sample) for tag in reading.sample.row["tags"]]
        ids: list[int] = []
        at: list[int] = []
        labels: list[int] = []
        first: list[int] = []  # per word, which of `at`
        lengths: list[int] = []
        for document in _documents(words, length - len(start) - len(end)):
            begin = len(ids)
            ids += start
            for word in document:
                learnt = len(word) if self.pieces == "all" else 1
                first.append(len(at))
                labels += [tags[len(first) - 1]] * learnt
                at += range(len(ids), len(ids) + learnt)
                ids += word
            ids += end
            lengths.append(len(ids) - begin)
        reference = [self.labels[tag] for tag in tags]
        return [Example(ids, {"tag": at}, {"tag": labels}, lengths=tuple(lengths), reference=reference, note=first)]

    def loss(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> dict[str, Term]:
        return {"tag": class_loss(heads["tag"], hidden[0, batch.at["tag"]], batch.labels["tag"])}

    def predict(self, hidden: Tensor, heads: nn.ModuleDict, batch: Batch) -> list[list[str]]:
        best = heads["tag"](hidden[0, batch.at["tag"]]).argmax(-1)
        parts = best.split([len(example.at["tag"]) for example in batch.examples])
        return [[self.labels[i] for i in part[example.note].tolist()] for part, example in zip(parts, batch.examples, strict=True)]


def _documents(words: list[list[int]], room: int) -> list[list[list[int]]]:
    documents: list[list[list[int]]] = []
    left = 0
    for word in words:
        if not documents or len(word) > left:
            documents.append([])
            left = room
        documents[-1].append(word)
        left -= len(word)
    return documents


def _writes_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a space is part of the piece behind it, as in byte-level vocabularies."""
    return tokenizer.inner.encode(" a", add_special_tokens=False).tokens[0].startswith("Ġ")


def _spaced(words: list[str]) -> list[str]:
    """Words as they stand in running text: a space before each but the first, none between characters of scripts without spaces."""
    return [f" {word}" if i and not (_ideographic(word) and _ideographic(words[i - 1])) else word for i, word in enumerate(words)]


def _ideographic(word: str) -> bool:
    return any(first <= character <= last for character in word for first, last in _IDEOGRAPHIC)
