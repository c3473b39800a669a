"""Prompt tuning: trained vectors of virtual tokens before every text. Lester et al. 2021, arXiv:2104.08691, section 2.

The base is frozen; a hard prompt is a text that does not train either.
"""

from dataclasses import dataclass
from typing import ClassVar

from luthier.anatomy.anatomy import Anatomy
from luthier.tuning._attached import Attached
from luthier.tuning._prefix import ids_of
from luthier.tuning._prompt import Prompt as Vectors
from luthier.tuning._prompt import Start, begin, free, put, stacks_of, weight_of


@dataclass(frozen=True)
class Prompt:
    length: int = 20  # virtual tokens; the paper takes 100
    start: Start = "uniform"  # U(-0.5, 0.5) as the paper; the embedding's own scale; or rows of the first 5,000 tokens, none twice
    text: str = ""  # start as the vectors of this text instead, repeated or cut to `length`
    labels: tuple[str, ...] = ()  # start as the class labels, each the mean of its sub-words; the other rows sampled
    hard: bool = False  # the text does not train
    at: tuple[str, ...] = ()  # encoder, decoder; the encoder of a pair when left out
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    verified: ClassVar[str] = "peft 0.21.2, files both ways"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"prompt needs length >= 1, not {self.length}")
        if len(self.labels) > self.length:
            raise ValueError(f"prompt: {len(self.labels)} labels need a length of as many at least, not {self.length}")
        if self.text and self.start != "uniform":
            raise ValueError(f"prompt starts from the text or as start={self.start!r} says, not from both; leave one out")
        if (self.hard and not self.text) or (self.text and self.labels):
            raise ValueError("prompt: hard needs a text, and a prompt starts from a text or from labels, not from both")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        words = ids_of(anatomy, self.text)
        labels = [ids.tolist() for label in self.labels if (ids := ids_of(anatomy, label)) is not None]
        if empty := [label for label in self.labels if not label.strip()]:
            raise ValueError(f"prompt: the label {empty[0]!r} has no word to start from; leave it out")
        stacks, first = stacks_of(anatomy, self.at), free(anatomy)
        length = len(words) if self.hard and words is not None else self.length
        rows = {stack: begin(weight_of(anatomy, stack), length, self.start, words, labels) for stack in stacks}
        return put(anatomy, name, self, {stack: Vectors(value, stack, first, self.hard) for stack, value in rows.items()})
