"""T5: text to text. Raffel et al. 2019, arXiv:1910.10683, section 2.1; version 1.1: Shazeer 2020, arXiv:2002.05202; FLAN: arXiv:2210.11416.

Pre-norm RMSNorm without any bias, scores without a scale, one table of relative positions for all layers of a stack. Version 1.0 has
ReLU and a tied softmax over scaled states, version 1.1 a gated GELU and a softmax of its own.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from torch import nn

from luthier.core.attention import Attention
from luthier.core.block import PreNorm
from luthier.core.encoder_decoder import EncoderDecoder
from luthier.core.feedforward import FeedForward, GatedFeedForward
from luthier.core.heads import LanguageHead, Scale
from luthier.core.names import Name
from luthier.core.norm import RMSNorm
from luthier.core.position import RelativeBias
from luthier.core.transformer import Embedding, Transformer
from luthier.models import _pair
from luthier.models._config import STORED, Reader


@dataclass(frozen=True)
class T5:
    vocab: int = 32_128
    width: int = 512
    layers: int = 6  # of the encoder
    decoder_layers: int = 0  # 0: as many as the encoder's
    heads: int = 8
    head_width: int = 64
    hidden: int = 2048
    buckets: int = 32
    reach: int = 128  # distances from here on share a bucket
    eps: float = 1e-6
    act: str = "relu"
    gated: bool = False
    tied: bool = True
    scaled: bool = True  # the softmax reads states * width^-0.5
    start: int = 0  # the token before every target
    dropout: float = 0.1  # everywhere: embeddings, attention, sublayer outputs, inside the feed-forward, after the last norm
    label_dropout: float = 0.0  # before the labels of a sentence, twice, or token

    types: ClassVar[tuple[str, ...]] = ("t5",)
    verified: ClassVar[str] = "transformers 5.23 T5ForConditionalGeneration and its heads, fp64, T=200, both directions; untied: 4.57.6 too"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "t5-small": {},
        "t5-base": {"width": 768, "layers": 12, "heads": 12, "hidden": 3072},
        "t5-large": {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
        "t5-3b": {"width": 1024, "layers": 24, "heads": 32, "head_width": 128, "hidden": 16_384},
        "t5-11b": {"width": 1024, "layers": 24, "heads": 128, "head_width": 128, "hidden": 65_536},
        "t5-v1.1-small": {"layers": 8, "heads": 6, "hidden": 1024, "gated": True, "act": "gelu_tanh", "tied": False, "scaled": False},
        "t5-v1.1-base": {
            "width": 768, "layers": 12, "heads": 12, "hidden": 2048, "gated": True, "act": "gelu_tanh", "tied": False, "scaled": False,
        },
        "t5-v1.1-large": {
            "width": 1024, "layers": 24, "heads": 16, "hidden": 2816, "gated": True, "act": "gelu_tanh", "tied": False, "scaled": False,
        },
        "t5-v1.1-xl": {
            "width": 2048, "layers": 24, "heads": 32, "hidden": 5120, "gated": True, "act": "gelu_tanh", "tied": False, "scaled": False,
        },
        "t5-v1.1-xxl": {
            "width": 4096, "layers": 24, "heads": 64, "hidden": 10_240, "gated": True, "act": "gelu_tanh", "tied": False, "scaled": False,
        },
        "flan-t5-small": {"layers": 8, "heads": 6, "hidden": 1024, "gated": True, "act": "gelu_tanh", "tied": False, "scaled": False},
        "flan-t5-base": {
            "width": 768, "layers": 12, "heads": 12, "hidden": 2048, "gated": True, "act": "gelu_tanh", "tied": False, "scaled": False,
        },
        "flan-t5-large": {
            "width": 1024, "layers": 24, "heads": 16, "hidden": 2816, "gated": True, "act": "gelu_tanh", "tied": False, "scaled": False,
        },
        "flan-t5-xl": {
            "width": 2048, "layers": 24, "heads": 32, "hidden": 5120, "gated": True, "act": "gelu_tanh", "tied": False, "scaled": False,
        },
        "flan-t5-xxl": {
            "width": 4096, "layers": 24, "heads": 64, "hidden": 10_240, "gated": True, "act": "gelu_tanh", "tied": False, "scaled": False,
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        if self.buckets < 4 or self.buckets % 4 or self.reach <= self.buckets // 2:
            raise ValueError(f"buckets={self.buckets} must be a multiple of 4, and reach={self.reach} be above half of it")

    def build(self) -> EncoderDecoder:
        norm = partial(RMSNorm, self.width, self.eps)
        embed = Embedding(nn.Embedding(self.vocab, self.width), dropout=self.dropout)
        encoder = Transformer(
            self, embed, [self._block() for _ in range(self.layers)], norm(), causal=False, width=self.width, relative=self._relative(True)
        )
        out = nn.Linear(self.width, self.vocab, bias=False)
        if self.tied:
            out.weight = embed.token.weight
        net = EncoderDecoder(
            self, encoder, embed, [self._block(cross=True) for _ in range(self.decoder_layers or self.layers)], norm(),
            LanguageHead(out, Scale(self.width**-0.5) if self.scaled else None), width=self.width, start=self.start, dropout=self.dropout,
            relative=self._relative(False), **_pair.parts(self.width, self.label_dropout),
        )  # fmt: skip
        return self._initialise(net)

    def _block(self, cross: bool = False) -> PreNorm:
        attention = partial(Attention, self.width, self.heads, head_width=self.head_width, bias=False, scale=1.0, dropout=self.dropout)
        kind = GatedFeedForward if self.gated else FeedForward
        ffn = kind(self.width, self.hidden, self.act, bias=False, drop=self.dropout)
        return PreNorm(attention(), ffn, partial(RMSNorm, self.width, self.eps), attention() if cross else None, self.dropout)

    def _relative(self, bidirectional: bool) -> RelativeBias:
        return RelativeBias(self.heads, bidirectional, self.buckets, self.reach)

    def _initialise(self, net: EncoderDecoder) -> EncoderDecoder:
        """Normal weights whose products have variance 1; the queries' are smaller by head_width^-0.5, which stands for the scale."""
        for part in net.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=part.in_features**-0.5)
            if isinstance(part, Attention):
                nn.init.normal_(part.q.weight, std=(self.width * self.head_width) ** -0.5)
            if isinstance(part, RelativeBias):
                nn.init.normal_(part.bias.weight, std=self.width**-0.5)
        for weight in {id(w): w for w in (net.embed.token.weight, net.heads["lm"].out.weight)}.values():  # type: ignore[union-attr]
            nn.init.normal_(weight, std=1.0)  # type: ignore[arg-type]
        return net

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "T5":
        read = Reader(config)
        gate, _, act = str(read("feed_forward_proj", "relu")).rpartition("-")
        if gate not in ("", "gated"):
            raise ValueError(f"config.json asks for feed_forward_proj={read('feed_forward_proj')!r}, which t5 here does not have")
        scaled = bool(read("scale_decoder_outputs", read("tie_word_embeddings", True)))
        return cls(
            vocab=read("vocab_size"),
            width=read("d_model"),
            layers=read("num_layers"),
            decoder_layers=read("num_decoder_layers", None) or 0,
            heads=read("num_heads"),
            head_width=read("d_kv"),
            hidden=read("d_ff"),
            buckets=read("relative_attention_num_buckets", 32),
            reach=read("relative_attention_max_distance", 128),
            eps=read("layer_norm_epsilon", 1e-6),
            act="gelu_tanh" if gate and act == "gelu" else Reader({"feed_forward_proj": act}).activation("feed_forward_proj", act),
            gated=bool(gate),
            tied=scaled,
            scaled=scaled,
            start=read("decoder_start_token_id", None) or 0,
            dropout=read("dropout_rate", 0.1),
            label_dropout=read("classifier_dropout", 0.0),
        )

    def fit(self, stored: set[str]) -> "T5":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        if any(name.startswith("encoder.") for name in stored) and not any(name.startswith("decoder.") for name in stored):
            raise ValueError("it holds T5's encoder alone, and t5 here is both stacks; load it with transformers and pass the model object")
        return replace(self, tied=self.scaled or "lm_head.weight" not in stored)

    def saved(self) -> "T5":
        """With a softmax matrix of its own where the states are not scaled: config.json has one setting for both."""
        return self if self.scaled else replace(self, tied=False)

    def to_config(self) -> dict[str, Any]:
        act = "gelu" if self.gated and self.act == "gelu_tanh" else STORED.get(self.act, self.act)
        return {
            "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True, "vocab_size": self.vocab,
            "d_model": self.width, "num_layers": self.layers, "num_decoder_layers": self.decoder_layers or self.layers,
            "num_heads": self.heads, "d_kv": self.head_width, "d_ff": self.hidden, "relative_attention_num_buckets": self.buckets,
            "relative_attention_max_distance": self.reach, "layer_norm_epsilon": self.eps,
            "feed_forward_proj": f"gated-{act}" if self.gated else act, "tie_word_embeddings": self.scaled,
            "decoder_start_token_id": self.start, "pad_token_id": self.start, "dropout_rate": self.dropout,
            "classifier_dropout": self.label_dropout,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = {"embed.token.weight": "shared"}
        if "lm" in heads and not self.tied:
            table["heads.lm.out.weight"] = "lm_head"
        ffn = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if self.gated else {"up": "wi", "down": "wo"}
        for prefix, stack, last in (("encoder.", "encoder", 1), ("", "decoder", 2)):
            table[f"{prefix}norm.weight"] = f"{stack}.final_layer_norm"
            table[f"{prefix}relative.bias.weight"] = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
            parts = {f"attn.{role}": f"0.SelfAttention.{role}" for role in "qkvo"} | {"attn_norm": "0.layer_norm"}
            if stack == "decoder":
                parts |= {f"cross.{role}": f"1.EncDecAttention.{role}" for role in "qkvo"} | {"cross_norm": "1.layer_norm"}
            parts |= {f"ffn.{ours}": f"{last}.DenseReluDense.{theirs}" for ours, theirs in ffn.items()}
            parts["ffn_norm"] = f"{last}.layer_norm"
            for i in range(self.layers if stack == "encoder" else self.decoder_layers or self.layers):
                table |= {f"{prefix}blocks.{i}.{ours}.weight": f"{stack}.block.{i}.layer.{theirs}" for ours, theirs in parts.items()}
        return {ours: Name(f"{theirs}.weight") for ours, theirs in table.items()} | _pair.names(heads)

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for copies of the shared embedding."""
        name = name.removeprefix("transformer.")  # of the classes with heads
        if name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            return None
        # An early converter gave the decoder's cross-attention a table of positions, which nothing reads.
        return None if name.endswith("layer.1.EncDecAttention.relative_attention_bias.weight") else name
