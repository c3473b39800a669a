"""Examples, how samples become them, and the batches they are packed into.

An example says which positions are read and what should be found there, by loss term: causal has {"lm": position t} and the token
at t + 1, classify {"classify": the pooled position} and a class. So every term's count is known before the forward pass.
Rows are packed without padding: ids (1, N), documents one after the other.

N tokens of a batch, M labelled positions of one term
"""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Encoding
from torch import Tensor

from luthier.data.illustrated import pictures
from luthier.data.stream import Sample
from luthier.data.tokenizer import Tokenizer
from luthier.sources.marks import Marks, marks
from luthier.sources.model import Model

if TYPE_CHECKING:
    from luthier.objectives._objective import Objective

AT_ONCE = 128  # samples tokenised in one go


@dataclass
class Example:
    """One or more documents that stay together (the choices of a question, the windows of a context)."""

    ids: list[int]
    at: dict[str, list[int]]  # term -> positions in ids whose hidden states are read
    labels: dict[str, list[Any]]  # term -> what should be found; as long as at, or one for the whole example
    types: list[int] | None = None  # BERT's segments
    lengths: tuple[int, ...] = ()  # of its documents; () is one document
    prompt: int = 0  # the first tokens that see each other in a causal model
    stack: str = ""  # of an encoder-decoder: whose states of the text are read, "encoder" or "decoder"
    reference: Any = None  # what predict() is compared with
    note: Any = None  # what predict() needs to know beside the batch
    sizes: dict[str, int] = field(default_factory=dict)  # term -> what its loss is divided by, where that is not its labels
    pictures: tuple[Tensor, ...] = ()  # (C, Y, X) each, in the order of their places
    adapter: str = ""  # that the row names; "": whatever is at work
    row: int = -1  # of once(): which row it is from; of Batches: the sample's place in its epoch

    @property
    def documents(self) -> tuple[int, ...]:
        return self.lengths or (len(self.ids),)


@dataclass
class Batch:
    """Examples packed into one forward pass."""

    ids: Tensor  # (1, N)
    lengths: tuple[int, ...]  # of the documents, their sum is N
    at: dict[str, Tensor]  # term -> (M,) positions in 0..N-1
    labels: dict[str, Tensor]  # term -> labels
    extra: dict[str, Tensor] = field(default_factory=dict)  # types (1, N)
    prompts: tuple[int, ...] | None = None  # per document
    sizes: dict[str, int] = field(default_factory=dict)  # term -> what its loss is divided by, where that is not its labels
    examples: tuple[Example, ...] = ()

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]

    @property
    def rows(self) -> int:
        return len(self.examples)

    @property
    def adapter(self) -> str:
        """That all of its rows name; "": whatever is at work."""
        return self.examples[0].adapter if self.examples else ""

    @property
    def labelled(self) -> int:
        return sum(self.counts().values())

    def counts(self) -> dict[str, int]:
        """Labels by term: what the sums of loss() are divided by, once added up over a step."""
        return {term: len(labels) for term, labels in self.labels.items()} | self.sizes

    def to(self, device: torch.device | str) -> "Batch":
        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

        ids = self.ids.to(device, non_blocking=True)
        return replace(self, ids=ids, at=moved(self.at), labels=moved(self.labels), extra=moved(self.extra))


@dataclass(frozen=True)
class Term:
    """One named part of a loss: its sum over count labels, and its weight among the other terms."""

    sum: Tensor
    count: int
    weight: float = 1.0


@dataclass(frozen=True)
class Size:
    """How much one optimizer step takes, in tokens (at most) or rows, and how much one forward pass takes."""

    tokens: int | None = None
    rows: int | None = None
    micro_tokens: int = 4096

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.rows is None):
            raise ValueError(f"a step has tokens or rows, exactly one: tokens={self.tokens}, rows={self.rows}")

    def full(self, rows: int, tokens: int, following: int) -> bool:
        """Whether a step that holds so much has no room for an example of `following` tokens."""
        if self.rows is not None:
            return rows >= self.rows
        assert self.tokens is not None
        return rows > 0 and tokens + following > self.tokens


def wide(x: Tensor) -> Tensor:
    """Losses are summed in float32 at least."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def quoted(sample: Sample) -> str:
    """The beginning of a row, for messages: enough to search the file for."""
    text = json.dumps(sample.row, ensure_ascii=False, default=str)
    return text if len(text) <= 100 else f"{text[:100]}..."


def collate(examples: Sequence[Example]) -> Batch:
    """Pack examples one after the other; positions shift by what stands before."""
    lengths = tuple(chain.from_iterable(example.documents for example in examples))
    at: dict[str, list[int]] = {}
    labels: dict[str, list[Any]] = {}
    sizes: dict[str, int] = {}
    offset = 0
    for example in examples:
        for term, positions in example.at.items():
            at.setdefault(term, []).extend([offset + position for position in positions])
        for term, values in example.labels.items():
            labels.setdefault(term, []).extend(values)
        for term, size in example.sizes.items():
            sizes[term] = sizes.get(term, 0) + size
        offset += len(example.ids)
    extra: dict[str, Tensor] = {}
    if any(example.types for example in examples):
        extra["types"] = _tensor(list(chain.from_iterable(example.types or [0] * len(example.ids) for example in examples)))[None]
    seen = [pixels for example in examples for pixels in example.pictures]
    if seen:
        extra["images"] = torch.stack(seen)
    prompts = tuple(chain.from_iterable((example.prompt,) + (0,) * (len(example.documents) - 1) for example in examples))
    return Batch(
        ids=_tensor(list(chain.from_iterable(example.ids for example in examples)))[None],
        lengths=lengths,
        at={term: _tensor(positions) for term, positions in at.items()},
        labels={term: _tensor(values) for term, values in labels.items()},
        extra=extra,
        prompts=prompts if any(prompts) else None,
        sizes=sizes,
        examples=tuple(examples),
    )


def _tensor(values: list[Any]) -> Tensor:
    """torch.tensor, which takes its time with long lists, only where not all values are whole numbers."""
    try:
        return torch.frombuffer(array("q", values), dtype=torch.long) if values else torch.tensor(values, dtype=torch.long)
    except TypeError:
        return torch.tensor(values)


def pack(examples: Sequence[Example], micro_tokens: int, together: bool = False) -> list[Batch]:
    """Micro-batches of at most micro_tokens; an example that is longer goes alone. Similar lengths stand together.

    Rows that name different adapters are in different ones: a forward pass under one adapter is cheaper than one under several, row by row.
    together: one batch of them all, in their order.
    """
    adapters = dict.fromkeys(example.adapter for example in examples)
    if together and len(adapters) > 1:
        told = ", ".join(filter(None, adapters))
        raise ValueError(f"rows that are compared with each other take one forward pass, so they cannot name adapters of their own: {told}")
    if together:
        return [collate(examples)] if examples else []
    if len(adapters) > 1:
        return [batch for name in adapters for batch in pack([each for each in examples if each.adapter == name], micro_tokens)]
    groups: list[list[Example]] = []
    room = 0
    for example in sorted(examples, key=lambda example: -max(example.documents)):
        if not groups or len(example.ids) > room:
            groups.append([])
            room = micro_tokens
        groups[-1].append(example)
        room -= len(example.ids)
    return [collate(group) for group in groups]


@dataclass
class Reading:
    """A sample on its way to examples: the strings it is read as, and their tokens (no special ones) once all strings are encoded."""

    sample: Sample
    texts: list[str]
    spans: list[tuple[int, int]] = field(default_factory=list)  # characters of the only text that are learnt, where not all are
    ids: list[list[int]] = field(default_factory=list)  # of the texts
    ranges: list[tuple[int, int]] = field(default_factory=list)  # the tokens that touch each of the spans
    codes: list[Encoding] = field(default_factory=list)  # instead of ids, for objectives that ask for them: ids and characters


def encode(objective: "Objective", samples: Sequence[Sample], model: Model, length: int) -> list[list[Example]]:
    """The examples of each sample, tokenised together; [] where a sample has nothing to learn."""
    assert model.tokenizer is not None
    templates = {name: marks(model, name) for name in dict.fromkeys(sample.row.get("adapter", "") for sample in samples)}
    if model.made is None or any(pictures(sample.row) for sample in samples):  # pictures are large
        return _encoded(objective, samples, model, length, templates)
    key = repr((objective, length, templates, model.template and model.template.fingerprint(), samples))
    found = model.made.get(key)
    if found is None:
        found = model.made[key] = _encoded(objective, samples, model, length, templates)
    return found


def _encoded(
    objective: "Objective", samples: Sequence[Sample], model: Model, length: int, templates: Mapping[str, Marks | None]
) -> list[list[Example]]:
    """templates: of the adapter that a row names."""
    assert model.tokenizer is not None
    for sample in samples:
        _check_sight(sample, objective, model)
    each = [templates[sample.row.get("adapter", "")] for sample in samples]
    room = length - sum(map(len, model.tokenizer.frame()))
    samples = [
        sample if mine is None else replace(sample, row=mine.write(sample.row, model.tokenizer, room))
        for sample, mine in zip(samples, each, strict=True)
    ]
    readings = [objective.read(sample, model) for sample in samples]
    _tokenise(readings, model.tokenizer, objective.encodings)
    found = []
    for reading, template in zip(readings, each, strict=True):
        examples = objective.examples(reading, model, length)
        for example in examples:
            example.row, example.adapter = reading.sample.index, reading.sample.row.get("adapter", "")
            if template is not None:
                _place(example, template)
            example.stack = objective.stack if model.encoder_decoder and not objective.pairs else ""
        found.append(examples)
    return found


def _check_sight(sample: Sample, objective: "Objective", model: Model) -> None:
    """A row with pictures needs an objective and a model that look at them."""
    if not pictures(sample.row):
        return
    if not objective.pictures:
        raise ValueError(
            f"objective {objective.kind} reads no pictures, and this row has some: {quoted(sample)}; take chat, causal or contrastive"
        )
    if model.net.sight is None:
        raise ValueError(
            f"{model.source} sees no pictures, and this row has some: {quoted(sample)}; take minigpt4 or blip2, or leave out their column"
        )


def _place(example: Example, template: Marks) -> None:
    """Pseudo-tokens for marks; a mark is never what is to be found."""
    template.place(example.ids, example.documents)
    for term, labels in example.labels.items():
        kept = [i for i, label in enumerate(labels) if label != template.id]
        if len(kept) < len(labels):
            example.at[term], example.labels[term] = [example.at[term][i] for i in kept], [labels[i] for i in kept]


def _tokenise(readings: Sequence[Reading], tokenizer: Tokenizer, encodings: bool) -> None:
    texts = list(chain.from_iterable(reading.texts for reading in readings))
    if any(reading.spans for reading in readings):
        for reading, (ids, ranges) in zip(readings, tokenizer.encode_spans(texts, [r.spans for r in readings]), strict=True):
            reading.ids, reading.ranges = [ids], ranges
    elif encodings:
        codes = iter(tokenizer.inner.encode_batch(texts, add_special_tokens=False))
        for reading in readings:
            reading.codes = list(islice(codes, len(reading.texts)))
    else:
        each = iter(tokenizer.encode_batch(texts))
        for reading in readings:
            reading.ids = list(islice(each, len(reading.texts)))


def once(
    objective: "Objective", rows: Sequence[dict], model: Model, length: int, micro_tokens: int = 4096, seed: int = 0
) -> Iterator[Batch]:
    """Every row one time, for measuring; batch.examples[i].row says which row an example is from."""
    objective.check(model)
    found = 0
    share = max(1, -(-len(rows) // -(-len(rows) // AT_ONCE))) if rows and objective.together else AT_ONCE  # equal parts
    for start in range(0, len(rows), share):
        samples = [Sample(rows[i], 0, i, seed) for i in range(start, min(start + share, len(rows)))]
        examples = list(chain.from_iterable(encode(objective, samples, model, length)))
        found += len(examples)
        yield from pack(examples, micro_tokens, objective.together)
    if not found:
        raise ValueError(objective.nothing(len(rows), length))
