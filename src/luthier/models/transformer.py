"""The Transformer: encoder-decoder, post-norm, sinusoid positions. Vaswani et al. 2017, arXiv:1706.03762, section 3.

The embedding, times sqrt(width), is that of both stacks and of the softmax (section 3.4); there is no norm after a stack.
"""

from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal

from torch import nn

from luthier.core.attention import Attention
from luthier.core.block import PostNorm
from luthier.core.encoder_decoder import EncoderDecoder
from luthier.core.feedforward import FeedForward
from luthier.core.heads import LanguageHead
from luthier.core.names import Name, linear
from luthier.core.position import Sinusoid
from luthier.core.transformer import Embedding, Transformer
from luthier.models import _pair
from luthier.models._config import STORED, Reader, check_even, check_heads

STACKS = {"encoder.": "encoder", "": "decoder"}  # ours: Marian's


@dataclass(frozen=True)
class Vaswani:
    vocab: int = 37_000
    width: int = 512
    layers: int = 6  # of the encoder
    decoder_layers: int = 6
    heads: int = 8
    hidden: int = 2048
    positions: int = 1024
    layout: Literal["interleaved", "halves", "tensor2tensor"] = "interleaved"  # of the sinusoids: the paper's, Marian's, fairseq's
    scaled: bool = True  # embeddings times sqrt(width)
    eps: float = 1e-6
    act: str = "relu"
    head_bias: bool = False
    start: int = 0  # the token before every target
    dropout: float = 0.1  # on embeddings and sublayer outputs
    attention_dropout: float = 0.0
    ffn_dropout: float = 0.0
    label_dropout: float = 0.0  # before the labels of a sentence, twice, or token

    types: ClassVar[tuple[str, ...]] = ("marian", "transformer")
    verified: ClassVar[str] = "transformers 5.23 MarianMTModel, fp64, T=200, both directions; the three sinusoid layouts by their formula"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "transformer-base": {},
        "transformer-big": {"width": 1024, "heads": 16, "hidden": 4096, "dropout": 0.3},
        "opus-mt": {
            "vocab": 58_101, "positions": 512, "layout": "halves", "eps": 1e-5, "act": "silu", "head_bias": True, "start": 58_100,
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        check_even(self.width)

    def build(self) -> EncoderDecoder:
        scale = self.width**0.5 if self.scaled else 1.0
        token = nn.Embedding(self.vocab, self.width)
        embed = Embedding(token, Sinusoid(self.positions, self.width, self.layout), scale=scale, dropout=self.dropout)
        encoder = Transformer(self, embed, [self._block() for _ in range(self.layers)], causal=False, width=self.width)
        blocks = [self._block(cross=True) for _ in range(self.decoder_layers)]
        out = nn.Linear(self.width, self.vocab, self.head_bias)
        out.weight = token.weight
        heads = _pair.parts(self.width, self.label_dropout)
        net = EncoderDecoder(self, encoder, embed, blocks, None, LanguageHead(out), width=self.width, start=self.start, **heads)
        return self._initialise(net)

    def _block(self, cross: bool = False) -> PostNorm:
        attention = partial(Attention, self.width, self.heads, dropout=self.attention_dropout)
        ffn = FeedForward(self.width, self.hidden, self.act, drop=self.ffn_dropout)
        norm = partial(nn.LayerNorm, self.width, self.eps)
        return PostNorm(attention(), ffn, norm, attention() if cross else None, self.dropout)

    def _initialise(self, net: EncoderDecoder) -> EncoderDecoder:
        """Glorot's uniform weights, zero biases; embeddings so that sqrt(width) times them has variance 1."""
        for block in [*net.blocks, *net.encoder.blocks]:
            for part in block.modules():
                if isinstance(part, nn.Linear):
                    nn.init.xavier_uniform_(part.weight)
                    nn.init.zeros_(part.bias)
        nn.init.normal_(net.embed.token.weight, std=self.width**-0.5)
        if self.head_bias:
            nn.init.zeros_(net.heads["lm"].out.bias)  # type: ignore[union-attr, arg-type]
        return net

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Vaswani":
        read = Reader(config)
        if read("model_type") == "transformer":
            return cls(**{field.name: read(field.name, field.default) for field in fields(cls)})
        vocab, heads, hidden = read("vocab_size"), read("encoder_attention_heads"), read("encoder_ffn_dim")
        if (read("decoder_vocab_size", None) or vocab) != vocab or not read("share_encoder_decoder_embeddings", True):
            raise ValueError("config.json asks for an embedding of the decoder's own, which transformer here does not have")
        if read("decoder_attention_heads", heads) != heads or read("decoder_ffn_dim", hidden) != hidden:
            raise ValueError("config.json asks for a decoder of other heads or hidden width than the encoder's, which is not here")
        if read("normalize_before", False) or read("normalize_embedding", False) or read("add_final_layer_norm", False):
            raise ValueError("config.json asks for norms in other places than after each sublayer, which transformer here does not have")
        return cls(
            vocab=vocab,
            width=read("d_model"),
            layers=read("encoder_layers"),
            decoder_layers=read("decoder_layers"),
            heads=heads,
            hidden=hidden,
            positions=read("max_position_embeddings", 1024),
            layout="halves",
            scaled=bool(read("scale_embedding", False)),
            eps=1e-5,
            act=read.activation("activation_function", "gelu"),
            start=read("decoder_start_token_id", 58_100),
            dropout=read("dropout", 0.1),
            attention_dropout=read("attention_dropout", 0.0),
            ffn_dropout=read("activation_dropout", 0.0),
            label_dropout=read("classifier_dropout", 0.0),
        )

    def fit(self, stored: set[str]) -> "Vaswani":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return replace(self, head_bias="final_logits_bias" in stored)

    def saved(self) -> "Vaswani":
        return self

    def to_config(self) -> dict[str, Any]:
        """Marian's form, which others read; one of our own where the sinusoids are not Marian's."""
        if self.layout != "halves" or self.eps != 1e-5:
            return {"architectures": ["Vaswani"], "model_type": "transformer", "is_encoder_decoder": True, **asdict(self)}
        return {
            "architectures": ["MarianMTModel"], "model_type": "marian", "is_encoder_decoder": True, "vocab_size": self.vocab,
            "decoder_vocab_size": self.vocab, "d_model": self.width, "encoder_layers": self.layers, "decoder_layers": self.decoder_layers,
            "encoder_attention_heads": self.heads, "decoder_attention_heads": self.heads, "encoder_ffn_dim": self.hidden,
            "decoder_ffn_dim": self.hidden, "max_position_embeddings": self.positions, "scale_embedding": self.scaled,
            "activation_function": STORED.get(self.act, self.act), "decoder_start_token_id": self.start, "pad_token_id": self.start,
            "dropout": self.dropout, "attention_dropout": self.attention_dropout, "activation_dropout": self.ffn_dropout,
            "classifier_dropout": self.label_dropout,
            "share_encoder_decoder_embeddings": True, "tie_word_embeddings": True, "static_position_embeddings": True,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = {"embed.token.weight": Name("model.shared.weight")}
        if "lm" in heads and self.head_bias:
            table["heads.lm.out.bias"] = Name("final_logits_bias", shape=(1, self.vocab))
        roles = {
            "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj", "attn.o": "self_attn.out_proj",
            "attn_norm": "self_attn_layer_norm", "ffn.up": "fc1", "ffn.down": "fc2", "ffn_norm": "final_layer_norm",
        }  # fmt: skip
        cross = {
            "cross.q": "encoder_attn.q_proj", "cross.k": "encoder_attn.k_proj", "cross.v": "encoder_attn.v_proj",
            "cross.o": "encoder_attn.out_proj", "cross_norm": "encoder_attn_layer_norm",
        }  # fmt: skip
        for prefix, stack in STACKS.items():
            layers, both = (self.layers, roles) if stack == "encoder" else (self.decoder_layers, roles | cross)
            for i in range(layers):
                for ours, theirs in both.items():
                    table |= linear(f"{prefix}blocks.{i}.{ours}", f"model.{stack}.layers.{i}.{theirs}", True)
        return table | _pair.names(heads)

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for what is not ours: the fixed position tables, the tied copies."""
        tied = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
        return None if name in tied or name.endswith("embed_positions.weight") else name
