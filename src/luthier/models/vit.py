"""ViT: a picture cut into patches, which are read as tokens. Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1.

BLIP-2 and MiniGPT-4 look through EVA-CLIP's ViT-g (Fang et al. 2022, arXiv:2211.07636): the same parts, query, key and value stored as one,
eps 1e-6, no pooler.

B pictures, C channels, Y and X pixels, T patches and the class token before them, D width
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.attention import Attention, Mask
from luthier.core.block import Context, PreNorm
from luthier.core.feedforward import FeedForward
from luthier.core.heads import LabelHead, Pooler
from luthier.core.names import Name, linear
from luthier.core.transformer import Transformer, initialise
from luthier.models._config import STORED, Reader, check_heads

EVA = "blip_2_vision_model"
NAMES = {
    "vit": {
        "embed.start": "embeddings.cls_token", "embed.position": "embeddings.position_embeddings",
        "embed.token": "embeddings.patch_embeddings.projection", "norm": "layernorm", "blocks": "encoder.layer", "attn.o": "attention.output.dense",
        "attn.q": "attention.attention.query", "attn.k": "attention.attention.key", "attn.v": "attention.attention.value",
        "attn_norm": "layernorm_before", "ffn_norm": "layernorm_after", "ffn.up": "intermediate.dense", "ffn.down": "output.dense",
    },
    EVA: {
        "embed.start": "embeddings.class_embedding", "embed.position": "embeddings.position_embedding",
        "embed.token": "embeddings.patch_embedding", "norm": "post_layernorm", "blocks": "encoder.layers", "attn.o": "self_attn.projection",
        "attn.q": "self_attn.qkv", "attn.k": "self_attn.qkv", "attn.v": "self_attn.qkv", "attn_norm": "layer_norm1",
        "ffn_norm": "layer_norm2", "ffn.up": "mlp.fc1", "ffn.down": "mlp.fc2",
    },
}  # fmt: skip


class Patches(nn.Module):
    """(B, C, Y, X) to (B, T, D): each patch through one matrix (`token`), a learned token before them, learned places added."""

    def __init__(self, channels: int, image: int, patch: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.image, self.channels = image, channels
        self.token = nn.Conv2d(channels, width, patch, patch)
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        if pixels_BCYX.shape[1:] != (self.channels, self.image, self.image):
            want = (self.channels, self.image, self.image)
            raise ValueError(f"pictures of shape {tuple(pixels_BCYX.shape[1:])} do not fit this model's {want}; scale them first")
        x_BTD = self.token(pixels_BCYX).flatten(2).mT
        return self.dropout(torch.cat([self.start.expand(len(x_BTD), -1, -1), x_BTD], 1) + self.position)


class Vision(Transformer):
    """A Transformer whose input are pictures (B, C, Y, X) instead of ids."""

    embed: Any

    @property
    def vocab(self) -> int:  # type: ignore[override]
        return 0

    def enter(self, ids: Tensor, mask: Tensor | None = None, *others: Any, **extra: Any) -> tuple[Tensor, Context]:  # type: ignore[override]
        return self.embed(ids), Context(Mask())

    def add_head(self, kind: str, labels: int) -> None:
        """A head on the class token's last state, without a pooler (ViT's appendix D.3 finds no use for one)."""
        if kind not in ("classify", "regress"):
            raise ValueError(f"a picture has no head {kind!r}; there are classify and regress")
        parameter = self.embed.token.weight
        head = LabelHead(self.width, labels)
        nn.init.normal_(head.out.weight, std=self.init_std)
        nn.init.zeros_(head.out.bias)
        self.heads[kind] = head.to(parameter.device, parameter.dtype).train(self.training)


@dataclass(frozen=True)
class ViT:
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    image: int = 224  # pixels a side
    patch: int = 16
    channels: int = 3
    eps: float = 1e-12
    act: str = "gelu"
    qkv_bias: bool = True
    dropout: float = 0.0  # on the embedding and on sublayer outputs
    attention_dropout: float = 0.0
    pooler: bool = True
    init_std: float = 0.02  # of fresh weights
    kind: str = "vit"  # config.json's model_type; blip_2_vision_model is EVA's form

    types: ClassVar[tuple[str, ...]] = ("vit", "blip_2_vision_model")
    verified: ClassVar[str] = "transformers 5.23 ViTModel, ViTForImageClassification and Blip2VisionModel, fp64, both directions"
    untrained: ClassVar[str] = "no run file trains it alone: it reads pictures and has no texts; blip2 has both"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "vit-base-patch16-224": {},
        "vit-base-patch32-224": {"patch": 32},
        "vit-large-patch16-224": {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "vit-huge-patch14-224": {"width": 1280, "layers": 32, "heads": 16, "hidden": 5120, "patch": 14},
        "eva-vit-g": {
            "width": 1408, "layers": 39, "heads": 16, "hidden": 6144, "patch": 14, "eps": 1e-6, "pooler": False,
            "kind": "blip_2_vision_model",
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        if self.kind not in NAMES:
            raise ValueError(f"kind={self.kind!r} is no picture model here; there are {', '.join(NAMES)}")
        if self.image % self.patch:
            raise ValueError(f"a picture of {self.image} pixels a side cannot be cut into patches of {self.patch}")

    def build(self) -> Vision:
        norm = partial(nn.LayerNorm, self.width, self.eps)
        blocks = [
            PreNorm(self._attention(), FeedForward(self.width, self.hidden, self.act), norm, dropout=self.dropout)
            for _ in range(self.layers)
        ]
        embed: Any = Patches(self.channels, self.image, self.patch, self.width, self.dropout)
        pooler = Pooler(self.width) if self.pooler else None
        net = initialise(Vision(self, embed, blocks, norm(), None, causal=False, width=self.width, pooler=pooler, init_std=self.init_std))
        for value in (embed.start, embed.position, embed.token.weight):
            nn.init.trunc_normal_(value, std=net.init_std)
        nn.init.zeros_(embed.token.bias)
        return net  # type: ignore[return-value]

    def _attention(self) -> Attention:
        return Attention(self.width, self.heads, bias=self.qkv_bias, out_bias=True, dropout=self.attention_dropout)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ViT":
        read = Reader(config)
        eva = read("model_type", "vit") == EVA
        for key in ("image_size", "patch_size"):
            if not isinstance(read(key, 16), int):
                raise ValueError(f"config.json asks for {key}={read(key)}, and vit here has squares only")
        if read("pooler_act", "tanh") != "tanh" or (read("pooler_output_size", None) or read("hidden_size")) != read("hidden_size"):
            raise ValueError("config.json asks for another pooler than tanh of the same width, which vit here does not have")
        return cls(
            width=read("hidden_size"),
            layers=read("num_hidden_layers"),
            heads=read("num_attention_heads"),
            hidden=read("intermediate_size"),
            image=read("image_size", 224),
            patch=read("patch_size", 14 if eva else 16),
            channels=read("num_channels", 3),
            eps=read("layer_norm_eps", 1e-6 if eva else 1e-12),
            act=read.activation("hidden_act", "gelu"),
            qkv_bias=bool(read("qkv_bias", True)),
            dropout=read("hidden_dropout_prob", 0.0),
            attention_dropout=read("attention_dropout" if eva else "attention_probs_dropout_prob", 0.0),
            pooler=not eva,
            kind=EVA if eva else "vit",
        )

    def fit(self, stored: set[str]) -> "ViT":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return replace(self, pooler="vit.pooler.dense.weight" in stored)

    def saved(self) -> "ViT":
        return self

    def to_config(self) -> dict[str, Any]:
        config = {
            "hidden_size": self.width, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "intermediate_size": self.hidden, "image_size": self.image, "patch_size": self.patch, "layer_norm_eps": self.eps,
            "hidden_act": STORED.get(self.act, self.act), "qkv_bias": self.qkv_bias,
        }  # fmt: skip
        if self.kind == EVA:
            return config | {"architectures": ["Blip2VisionModel"], "model_type": EVA, "attention_dropout": self.attention_dropout}
        return config | {
            "architectures": ["ViTModel"], "model_type": "vit", "num_channels": self.channels, "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.attention_dropout, "initializer_range": 0.02,
        }  # fmt: skip

    @property
    def top(self) -> str:
        return "vit." if self.kind == "vit" else ""

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        theirs, fused = NAMES[self.kind], self.kind == EVA
        table = {ours: Name(self.top + theirs[ours]) for ours in ("embed.start", "embed.position")}
        table |= linear("embed.token", self.top + theirs["embed.token"], True) | linear("norm", self.top + theirs["norm"], True)
        for i in range(self.layers):
            stem = f"{self.top}{theirs['blocks']}.{i}."
            for j, role in enumerate(("attn.q", "attn.k", "attn.v", "attn.o", "attn_norm", "ffn_norm", "ffn.up", "ffn.down")):
                rows = (j * self.width, (j + 1) * self.width) if fused and j < 3 else None
                table |= linear(f"blocks.{i}.{role}", stem + theirs[role], self.qkv_bias or j > 2, rows=rows)
        if self.pooler:
            table |= linear("pooler.dense", f"{self.top}pooler.dense", True)
        for kind in heads.keys() & {"classify", "regress"}:
            table |= linear(f"heads.{kind}.out", "classifier", True)
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor: files of a bare model have no `vit.` before theirs."""
        if self.kind == EVA:
            return name.removeprefix("vision_model.")
        return name if name.startswith(("vit.", "classifier.")) else f"vit.{name}"
