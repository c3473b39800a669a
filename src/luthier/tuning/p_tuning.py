"""P-tuning: pseudo-tokens whose vectors an LSTM and an MLP make. Liu et al. 2021, arXiv:2103.10385, section 3.2.

They stand before the text, anywhere in a template, or wherever the text itself has them (`luthier.anatomy.virtual.virtual_ids` says which
ids they are).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from luthier.anatomy.anatomy import Anatomy
from luthier.sources.marks import count
from luthier.tuning._attached import Attached
from luthier.tuning._own import everything, inside, train_own
from luthier.tuning._prompt import encoded, free, put, stacks_of, weight_of


@dataclass(frozen=True)
class PTuning:
    length: int = 9  # pseudo-tokens; the paper's templates have 3 + 3 + 3. A template says itself how many
    encoder: Literal["lstm", "mlp"] = "lstm"  # a bidirectional LSTM, then an MLP; or the MLP alone
    layers: int = 2  # of the LSTM
    place: Literal["front", "text"] = "front"  # before every text, or where the text has their ids
    template: str = ""  # where they stand among the columns of a row: "<p*3>{text}<p*3> It was" for two times three
    base_rate: float = 0.0  # the base trains too, at this learning rate; 0: it is frozen. Its embedding always is
    at: tuple[str, ...] = ()  # encoder, decoder; the encoder of a pair when left out
    also_train: tuple[str, ...] = ()  # head, norm or roles that train whole
    verified: ClassVar[str] = (
        "the paper's formula by hand; peft 0.21.2 reads what it writes; a template's pseudo-tokens as words of the vocabulary"
    )

    def __post_init__(self) -> None:
        if self.length < 1 or self.layers < 1 or self.base_rate < 0:
            raise ValueError(f"p_tuning needs length >= 1, layers >= 1 and base_rate >= 0, not {self}")
        if self.template:
            count(self.template)

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        stacks, first = stacks_of(anatomy, self.at), free(anatomy)
        length, front = count(self.template) if self.template else self.length, self.place == "front" and not self.template
        places = {stack if front else "": weight_of(anatomy, stack) for stack in stacks}
        rows = {stack: encoded(self, like, length, stack, first) for stack, like in places.items()}
        attached = put(anatomy, name, self, rows, beside=self.base_rate == 0)
        if self.base_rate:
            heads = ["heads.lm"] if anatomy.task_heads() else []  # beside a task's head the vocabulary's learns nothing
            fixed = (anatomy.embed.path, *heads)
            sites = [site for site in inside(anatomy, anatomy.root) if not site.path.startswith(fixed) and site.adapter(name) is None]
            own = train_own(anatomy, name, [place for place in everything(sites) if place[0].parameters[place[1]].is_floating_point()])
            attached.parameters |= own
            attached.rates = dict.fromkeys(own, self.base_rate)
        return attached
