"""P-tuning v2: trained keys and values before those of every layer, without an MLP. Liu et al. 2021, arXiv:2110.07602, section 3."""

from dataclasses import dataclass
from typing import ClassVar

from luthier.anatomy.anatomy import Anatomy
from luthier.tuning._attached import Attached
from luthier.tuning._prefix import attach, ids_of


@dataclass(frozen=True)
class PTuningV2:
    length: int = 20  # columns before the keys; they take as many positions. The paper: 8 to 224, more for harder tasks
    start: str = ""  # a text of `length` tokens at least, whose keys and values it starts as; random when left out
    dropout: float = 0.0  # on keys and values; the released code takes 0.1
    shift: bool = True  # the text's positions begin behind the columns, as behind earlier tokens; the library adapters leaves them
    at: tuple[str, ...] = ()  # encoder.self, decoder.self, decoder.cross; all that the model has when left out
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    blocks: str | tuple[int, ...] | None = None  # "last 2" or numbers; all when left out
    verified: ClassVar[str] = "peft 0.21.2, files both ways; the published counts of RoBERTa-large"

    def __post_init__(self) -> None:
        if self.length < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"p_tuning_v2 needs length >= 1 and 0 <= dropout < 1, not {self}")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        return attach(anatomy, name, self, self.length, 0, ids_of(anatomy, self.start))
