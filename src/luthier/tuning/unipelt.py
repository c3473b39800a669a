"""UniPELT: LoRA, a prefix and adapters, each behind a gate. Mao et al. 2022, arXiv:2110.07577, section 3.2.

W x + g B A x at q and v, the gate in the place of alpha; keys and values g P_k, g P_v before those of every attention; y + g W_up relu(W_down r)
after every feed-forward. g = sigmoid(w x + b), x what enters the projection, the attention or the adapter.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import nn

from luthier.anatomy.anatomy import Anatomy
from luthier.anatomy.call import CallAround, Leading
from luthier.anatomy.site import Site
from luthier.anatomy.text import listen
from luthier.tuning._attached import Attached
from luthier.tuning._bottleneck import Bottleneck, Seen, Tap, ends, put, sublayers
from luthier.tuning._common import train_beside
from luthier.tuning._gate import Gate, Gated, GatedLead
from luthier.tuning._lowrank import LowRank, check_place
from luthier.tuning._prefix import attach as lead
from luthier.tuning._prefix import groups_of


@dataclass(frozen=True)
class UniPELT:
    roles: tuple[str, ...] = ("q", "v")  # which projections have low-rank terms
    rank: int = 8
    length: int = 10  # columns before the keys; they take as many positions
    hidden: int = 512  # width of the prefix's MLP
    reduction: int = 16  # the model's width divided by this is the adapter's
    act: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] = "relu"
    gates: Literal["token", "text"] = "token"  # each token's own; text: their mean, as the released code, for models that read whole texts
    dropout: float = 0.0  # on the input of A, and on the prefix's keys and values
    at: tuple[str, ...] = ()  # prefixes: encoder.self, decoder.self, decoder.cross; all that the model has when left out
    shift: bool = True  # the text's positions begin behind the columns, as behind earlier tokens; the library adapters leaves them
    also_train: tuple[str, ...] = ()  # embed, head, norm or roles that train whole
    tokens: tuple[str, ...] | str = ()  # added to the vocabulary, trained and saved with it; or the folder of a second tokenizer
    blocks: str | tuple[int, ...] | None = None  # "last 2" or numbers; all when left out
    verified: ClassVar[str] = "adapters 1.3.0 (outputs and count on BERT), the gated attention in closed form"

    def __post_init__(self) -> None:
        if min(self.rank, self.length, self.hidden, self.reduction) < 1 or not self.roles or not 0 <= self.dropout < 1:
            raise ValueError(f"unipelt needs roles, rank, length, hidden and reduction of 1 at least and 0 <= dropout < 1, not {self}")

    def attach(self, anatomy: Anatomy, name: str = "default") -> Attached:
        if self.gates == "text":
            if "decoder" in anatomy.stacks:
                raise ValueError("gates: text are means over whole texts, which a model that writes has not read yet; take gates: token")
            listen(anatomy)
        parameters = self._low_rank(anatomy, name) | self._prefix(anatomy, name) | self._adapters(anatomy, name)
        return Attached(anatomy, name, self, parameters | train_beside(anatomy, name, self.also_train))

    def _gate(self, width: int, site: Site) -> Gate:
        return Gate(width, site.weight, self.gates == "text")

    def _low_rank(self, anatomy: Anatomy, name: str) -> dict[str, nn.Parameter]:
        named: dict[str, nn.Parameter] = {}
        for site in anatomy.find(*self.roles, layers=self.blocks):
            check_place(site, self.rank)
            d_out, d_in = site.weight.shape
            a_RI = nn.init.kaiming_uniform_(site.weight.new_empty(self.rank, d_in), a=5**0.5)
            gated = Gated(LowRank(a_RI, site.weight.new_zeros(d_out, self.rank), 1.0, self.dropout), self._gate(d_in, site))
            site.wrap(name, gated)
            named |= _named(site.address, gated)
        return named

    def _prefix(self, anatomy: Anatomy, name: str) -> dict[str, nn.Parameter]:
        named = dict(lead(anatomy, name, self, self.length, self.hidden, None, beside=False).parameters)
        for group in groups_of(anatomy, self.at, self.blocks):
            for call in group.calls:
                seen, q = Seen(), _entrance(anatomy, call, group.name)
                around = call.around
                assert isinstance(around, CallAround)
                inner = around.adapters[name]
                assert isinstance(inner, Leading)
                gated = GatedLead(inner, self._gate(q.weight.shape[1], q), seen)
                around.adapters[name] = gated.train(around.base.training)
                known = q.adapter(name)
                if isinstance(known, Gated):
                    known.seen = seen
                else:
                    replace(q, role="", rows=None).wrap(name, Tap(seen))
                named |= {f"{group.name}.{call.layer}.gate.{key}": value for key, value in gated.open.out.named_parameters()}
        return named

    def _adapters(self, anatomy: Anatomy, name: str) -> dict[str, nn.Parameter]:
        named: dict[str, nn.Parameter] = {}
        for place in sublayers(anatomy, ("ffn",), self.blocks, norms=True):
            down, up = ends(place.leaves.weight, max(1, place.width // self.reduction), 0.0)
            put(anatomy, name, place, down, up, self.act, 1.0, "sum")
            inner = place.leaves.adapter(name)
            assert isinstance(inner, Bottleneck)
            assert place.leaves.around is not None
            gated = Gated(inner, self._gate(place.width, place.leaves))
            place.leaves.around.adapters[name] = gated.train(place.leaves.around.base.training)
            named |= _named(place.leaves.address, gated)
        return named


def _named(address: str, gated: Gated) -> dict[str, nn.Parameter]:
    """a, b, down.weight ... and gate.weight, gate.bias."""
    ends = {"inner.a_RI": "a", "inner.b_OR": "b", "gate.out.weight": "gate.weight", "gate.out.bias": "gate.bias"}
    return {f"{address}.{ends.get(key, key.removeprefix('inner.'))}": parameter for key, parameter in gated.named_parameters()}


def _entrance(anatomy: Anatomy, call: Site, group: str) -> Site:
    """The projection that the attention's input goes into."""
    return next(site for site in anatomy.find(f"{group}.q") if site.path.rpartition(".")[0] == call.path.rpartition(".")[0])
