"""Bottleneck adapters. Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2020, arXiv:2005.00052; He et al. 2021, arXiv:2110.04366.

y + scale * W_up act(W_down r) around frozen sublayers, y what leaves one, r what the bottleneck reads.
Houlsby: the fields as they are. Pfeiffer: {after: [ffn], reads: sum, reduction: 16, act: relu, norms: false}.
Parallel: {after: [ffn], reads: in, width: 512, act: relu, norms: false}; scaled: with {scale: 4} beside.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.table import is_norm
from luthier.tuning._attached import Attached
from luthier.tuning._bottleneck import Reads, ends, put, sublayers
from luthier.tuning._common import train_beside
from luthier.tuning._own import everything


@dataclass(frozen=True)
class Bottlenecks:
    """Where they stand, what they read, and what trains beside them."""

    after: tuple[Literal["attn", "cross", "ffn"], ...] = ("attn", "ffn")  # sublayers, before their residual
    reads: Reads = "out"  # the sublayer's output; in: its input, as a parallel branch; sum: output + residual, as the block norms it
    width: int = 64  # of the bottleneck
    reduction: int = 0  # the model's width divided by this, instead of width
    act: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] = "gelu"
    scale: float = 1.0
    start: float = 0.0  # deviation of both matrices, cut at two (Houlsby's code 0.001); 0: up is zero, so that step 0 is the base
    norms: bool = True  # every norm of the model trains too
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    blocks: str | tuple[int, ...] | None = None  # "last 2" or numbers; all when left out
    verified: ClassVar[str] = "adapters 1.3.0 (outputs: Houlsby, Pfeiffer on BERT and GPT-2, parallel on BERT), published counts"

    def __post_init__(self) -> None:
        if self.width < 1 or self.reduction < 0 or self.start < 0 or not self.after:
            raise ValueError(f"adapter needs after, width >= 1, reduction >= 0 and start >= 0, not {self}")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        parameters: dict[str, nn.Parameter] = {}
        for place in sublayers(anatomy, self.after, self.blocks, self.reads == "sum"):
            if self.norms and self.reads == "sum" and not place.post:
                raise ValueError("reads: sum looks into the norms of this model, which therefore cannot train beside it: norms: false")
            width = max(1, place.width // self.reduction) if self.reduction else self.width
            down, up = ends(place.leaves.weight, width, self.start)
            parameters |= put(anatomy, name, place, down, up, self.act, self.scale, self.reads)
        norms = [anatomy.at(path) for path, module in anatomy.modules() if self.norms and is_norm(module)]
        return Attached(anatomy, name, self, parameters | train_beside(anatomy, name, self.also_train, everything(norms)))
