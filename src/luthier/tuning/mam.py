"""MAM: a short prefix, and a wide scaled parallel adapter beside every feed-forward. He et al. 2022, arXiv:2110.04366, section 4.6.

h = base + scale * W_up relu(W_down x), x what enters the feed-forward; and prefix columns before the keys of every attention, which are the
same form: (1 - g) base + g softmax(x W_q P_k^T) P_v, g the share of the attention that the prefix takes (section 3.1, eq. 7).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from luthier.anatomy.anatomy import Anatomy
from luthier.tuning._attached import Attached
from luthier.tuning._compose import compose
from luthier.tuning._composition import Stack, tree


@dataclass(frozen=True)
class MAM:
    length: int = 30  # columns before the keys; they take as many positions
    hidden: int = 800  # width of the prefix's MLP, which only training needs
    width: int = 512  # of the adapter
    act: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] = "relu"
    scale: float = 4.0  # on what the adapter adds
    dropout: float = 0.0  # on the prefix's keys and values
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    blocks: str | tuple[int, ...] | None = None  # "last 2" or numbers; all when left out
    verified: ClassVar[str] = "adapters 1.3.0 (outputs on BERT), the paper's count, section 3.1 in closed form"

    def __post_init__(self) -> None:
        if min(self.length, self.hidden, self.width) < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"mam needs length, hidden and width of 1 at least and 0 <= dropout < 1, not {self}")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        return compose(anatomy, self.inside(), name, method=self)

    def inside(self) -> Stack:
        """The two methods that it is a stack of."""
        both = {"also_train": self.also_train, "blocks": self.blocks}
        prefix = {"kind": "prefix", "length": self.length, "hidden": self.hidden, "dropout": self.dropout} | both
        form = {"after": ("ffn",), "reads": "in", "act": self.act, "norms": False}
        stack = tree([prefix, {"kind": "adapter", "width": self.width, "scale": self.scale} | form | both])
        assert isinstance(stack, Stack)
        return stack
