"""Prefix-tuning: trained keys and values before those of every layer. Li & Liang 2021, arXiv:2101.00190, section 4.

While it trains, an MLP makes them out of a smaller matrix, one for each kind of attention: the encoder's, the decoder's own, and the one
that looks at the encoder. What is kept is what the MLP makes.
"""

from dataclasses import dataclass
from typing import ClassVar

from luthier.anatomy.anatomy import Anatomy
from luthier.tuning._attached import Attached
from luthier.tuning._prefix import attach, ids_of


@dataclass(frozen=True)
class Prefix:
    length: int = 10  # columns before the keys; they take as many positions
    hidden: int = 512  # width of the MLP; the paper takes 800 for summaries
    start: str = ""  # a text of `length` tokens at least, whose keys and values it starts as; random when left out
    dropout: float = 0.0  # on keys and values
    shift: bool = True  # the text's positions begin behind the columns, as behind earlier tokens; the library adapters leaves them
    at: tuple[str, ...] = ()  # encoder.self, decoder.self, decoder.cross; all that the model has when left out
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    blocks: str | tuple[int, ...] | None = None  # "last 2" or numbers; all when left out
    verified: ClassVar[str] = "peft 0.21.2, files both ways; the published counts of GPT-2 and BART"

    def __post_init__(self) -> None:
        if self.length < 1 or self.hidden < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"prefix needs length >= 1, hidden >= 1 and 0 <= dropout < 1, not {self}")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        return attach(anatomy, name, self, self.length, self.hidden, ids_of(anatomy, self.start))
