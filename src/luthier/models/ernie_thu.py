"""ERNIE of Tsinghua: BERT with a second stream, of the entities in a text. Zhang et al. 2019, arXiv:1905.07129, sections 3.2 to 3.4.

An entity's vector stands at the first token that names it; the vectors (TransE's, 100 wide) come from outside and are not trained.
net.hidden(..., entities=(B, T, E), entity_mask=(B, T)) gives the states of the tokens. Kinds of layers: sim is BERT's; mix fuses both
streams in its feed-forward; norm has an attention among the entities before that. The last layer's entity outputs are read by nobody, and
have no gradient.
B batch, T length, D width, E entity width, F hidden width, C candidate entities
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.attention import Attention
from luthier.core.block import Block, Context, PostNorm
from luthier.core.fan import fan
from luthier.core.feedforward import ACTIVATIONS
from luthier.core.names import Name, linear
from luthier.core.transformer import Embedding, Transformer
from luthier.models import _bert
from luthier.models._config import Reader, check_heads

FUSION = {"ffn.entity_up": "intermediate.dense_ent", "ffn.entity_down": "output.dense_ent", "entity_norm": "output.LayerNorm_ent"}
ENTITY_ATTENTION = {
    f"entity_attn.{role}": f"attention.self_ent.{name}" for role, name in zip("qkv", ("query", "key", "value"), strict=True)
}
ENTITY_ATTENTION |= {"entity_attn.o": "attention.output_ent.dense", "entity_attn_norm": "attention.output_ent.LayerNorm"}
EXTRA = {"sim": {}, "mix": FUSION, "norm": FUSION | ENTITY_ATTENTION}


@dataclass(frozen=True)
class ErnieTHU:
    vocab: int = 30_522
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    kinds: tuple[str, ...] = ("sim", "sim", "sim", "sim", "sim", "mix", "norm", "norm", "norm", "norm", "norm", "norm")  # of the layers
    entity_width: int = 100
    entity_heads: int = 4
    positions: int = 512
    segments: int = 2
    eps: float = 1e-12
    act: str = "gelu"
    dropout: float = 0.1  # on embeddings and sublayer outputs
    attention_dropout: float = 0.1
    label_dropout: float = 0.1  # before the labels of a sentence or token
    lm: bool = True  # the masked-token head
    next_sentence: bool = True  # the head that says whether the second text follows the first: 0 yes, 1 no
    sentence_order: bool = False  # the head that says whether two texts are in order: 0 yes, 1 no
    entities: bool = True  # the head that finds a token's entity among candidates
    pooler: bool = True

    types: ClassVar[tuple[str, ...]] = ("ernie_thu",)
    verified: ClassVar[str] = (
        "outputs of the reference implementation (thunlp/ERNIE), a fixture, fp64; the order of the released layers is not"
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {"ernie-thu-base": {}}

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        check_heads(self.entity_width, self.entity_heads)
        if len(self.kinds) != self.layers or not set(self.kinds) <= EXTRA.keys():
            raise ValueError(f"layers={self.layers} need as many kinds, each of {', '.join(EXTRA)}; there are {', '.join(self.kinds)}")

    def build(self) -> Transformer:
        token = _bert.embedding(self)
        embed = EntityEmbedding(self.entity_width, token)
        blocks = [SimBlock(self) if kind == "sim" else EntityBlock(self, kind == "norm") for kind in self.kinds]
        others = {"entities": EntityHead(self)} if self.entities else None
        return _bert.encoder(self, embed, blocks, others=others, norm=First(self.width), form=TwoStreams)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ErnieTHU":
        read = Reader(config)
        fields, kinds = _bert.sizes(read), tuple(read("layer_types"))
        kinds += ("sim",) * (fields["layers"] - len(kinds))
        return cls(**fields, kinds=kinds, entity_width=read("entity_size", 100), entity_heads=read("num_entity_attention_heads", 4))

    def fit(self, stored: set[str]) -> "ErnieTHU":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return _bert.fit(self, stored, entities="cls.predictions_ent.transform.dense.weight")

    def saved(self) -> "ErnieTHU":
        return self

    def to_config(self) -> dict[str, Any]:
        own = {"layer_types": list(self.kinds), "entity_size": self.entity_width, "num_entity_attention_heads": self.entity_heads}
        return _bert.settings(self, "ernie_thu", "Bert", "next_sentence") | own

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = _bert.names(self, heads)
        for i, kind in enumerate(self.kinds):
            table |= _bert.block_names(i, EXTRA[kind], f"bert.encoder.layer.{i}")
        if "entities" in heads:
            table |= linear("heads.entities.out", "cls.predictions_ent.transform.dense", True)
            table |= linear("heads.entities.norm", "cls.predictions_ent.transform.LayerNorm", True)
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for what is not ours: buffers, the tied decoder."""
        return _bert.alias(name, "bert")


class First(nn.Module):
    """The first columns: the tokens' stream."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.width]


class TwoStreams(Transformer):
    """Between the blocks go the states of tokens and entities side by side, (B, T, D + E)."""

    def states(self, ids: Tensor, mask: Tensor | None = None, **inputs: Any) -> list[Tensor]:
        return [self.norm(x) for x in super().states(ids, mask, **inputs)]


class EntityEmbedding(Embedding):
    """BERT's, and beside it the entities' vectors; zeros where none are given."""

    def __init__(self, entity_width: int, of: Embedding):
        assert isinstance(of.position, nn.Embedding)
        super().__init__(of.token, of.position, of.types, of.norm, dropout=of.dropout.p)
        self.entity_width = entity_width

    def forward(  # type: ignore[override]
        self,
        ids_BT: Tensor,
        position_BT: Tensor,
        type_BT: Tensor | None,
        entities: Tensor | None = None,
        entity_mask: Tensor | None = None,
    ) -> Tensor:
        x = super().forward(ids_BT, position_BT, type_BT)
        shape = (*ids_BT.shape, self.entity_width)
        if (entities is None) != (entity_mask is None) or (entities is not None and entities.shape != shape):
            raise ValueError(
                f"entities go with an entity_mask, and are of shape {shape}: a vector for each token, zeros where the mask is False"
            )
        return torch.cat([x, x.new_zeros(shape) if entities is None else entities.to(x.dtype)], -1)


class SimBlock(PostNorm):
    """BERT's block for the tokens; the entities pass by."""

    def __init__(self, arch: ErnieTHU):
        super().__init__(_bert.attention(arch), _bert.feed_forward(arch), _bert.norm(arch), dropout=arch.dropout)
        self.width = arch.width

    def forward(self, x: Tensor, context: Context, layer: int) -> Tensor:
        tokens, entities = x[..., : self.width], x[..., self.width :]
        return torch.cat([super().forward(tokens, context, layer), entities], -1)


class EntityBlock(Block):
    """Both streams, section 3.3: attention in each (among entities only with `attends`), then one feed-forward over the two."""

    def __init__(self, arch: ErnieTHU, attends: bool):
        super().__init__(_bert.attention(arch), Fusion(arch), _bert.norm(arch), dropout=arch.dropout)
        self.width, norm = arch.width, _bert.norm(arch, arch.entity_width)
        self.entity_attn = Attention(arch.entity_width, arch.entity_heads, dropout=arch.attention_dropout) if attends else None
        self.entity_attn_norm = norm() if attends else None
        self.entity_norm = norm()

    def forward(self, x: Tensor, context: Context, layer: int) -> Tensor:
        w, e = x[..., : self.width], x[..., self.width :]
        mask_BT = context.extra.get("entity_mask")
        mask_BT = torch.zeros_like(w[..., 0], dtype=torch.bool) if mask_BT is None else mask_BT.bool()
        w = self.attn_norm(w + self.attention(w, context, layer))
        if self.entity_attn is not None and self.entity_attn_norm is not None:
            keys = mask_BT if context.mask.keys is None else mask_BT & context.mask.keys
            e = self.entity_attn_norm(e + self.dropout(self.entity_attn(e, replace(context.mask, keys=keys))))
        e = e * mask_BT[..., None]
        w_out, e_out = self.ffn(w, e)
        return torch.cat([self.ffn_norm(w + self.dropout(w_out)), self.entity_norm(e + self.dropout(e_out))], -1)


class Fusion(nn.Module):
    """h = act(up w + entity_up e), read by both streams: down h, entity_down h."""

    fans = ("up",)

    def __init__(self, arch: ErnieTHU):
        super().__init__()
        self.up, self.entity_up = nn.Linear(arch.width, arch.hidden), nn.Linear(arch.entity_width, arch.hidden)
        self.down, self.entity_down = nn.Linear(arch.hidden, arch.width), nn.Linear(arch.hidden, arch.entity_width)
        self.act = ACTIVATIONS[arch.act]

    def forward(self, w: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        (up,) = fan((self.up,), w)
        h_BTF = self.act(up + self.entity_up(e))
        (down,) = fan((self.down,), h_BTF)
        return down, self.entity_down(h_BTF)


class EntityHead(nn.Module):
    """Scores of the candidates at each token: norm(act(dense h)) times each candidate's vector. Section 3.4."""

    def __init__(self, arch: ErnieTHU):
        super().__init__()
        self.out, self.act = nn.Linear(arch.width, arch.entity_width), ACTIVATIONS[arch.act]
        self.norm = _bert.norm(arch, arch.entity_width)()

    def forward(self, hidden: Tensor, candidates_CE: Tensor) -> Tensor:
        return self.norm(self.act(self.out(hidden))) @ candidates_CE.T
