"""BLOOM: pre-norm LayerNorm with one more behind the embedding, and ALiBi. Le Scao et al. 2022, arXiv:2211.05100, section 3.2.

BELLE-7B is the 7B1 size, tuned. q, k and v are stored as one matrix that goes head by head.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from torch import nn

from luthier.core.attention import Attention
from luthier.core.block import PreNorm
from luthier.core.feedforward import FeedForward
from luthier.core.heads import LanguageHead
from luthier.core.names import Name, linear
from luthier.core.position import ALiBi
from luthier.core.transformer import Embedding, Transformer, initialise
from luthier.models._config import Reader, check_heads


@dataclass(frozen=True)
class Bloom:
    vocab: int = 250_880
    width: int = 1024
    layers: int = 24
    heads: int = 16
    positions: int = 2048  # trained with so many; ALiBi itself has no limit
    eps: float = 1e-5
    tied: bool = True
    dropout: float = 0.0  # on sublayer outputs
    attention_dropout: float = 0.0
    lm: bool = True  # the language-model head; a classifier's checkpoint has none of its own

    types: ClassVar[tuple[str, ...]] = ("bloom",)
    verified: ClassVar[str] = "transformers 5.23 BloomForCausalLM, fp64, T=200, both directions"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "bloom-560m": {},
        "bloom-1b1": {"width": 1536},
        "bloom-1b7": {"width": 2048},
        "bloom-3b": {"width": 2560, "layers": 30, "heads": 32},
        "bloom-7b1": {"width": 4096, "layers": 30, "heads": 32},
        "bloom": {"width": 14_336, "layers": 70, "heads": 112},
        "belle-7b": {"width": 4096, "layers": 30, "heads": 32},
    }

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)

    @property
    def hidden(self) -> int:
        return 4 * self.width

    @property
    def act(self) -> str:
        return "gelu_tanh"

    def build(self) -> Transformer:
        norm = partial(nn.LayerNorm, self.width, self.eps)
        blocks = [
            PreNorm(self._attention(), FeedForward(self.width, self.hidden, self.act), norm, dropout=self.dropout)
            for _ in range(self.layers)
        ]
        embed = Embedding(nn.Embedding(self.vocab, self.width), norm=norm())
        out = nn.Linear(self.width, self.vocab, bias=False)
        if self.tied:
            out.weight = embed.token.weight
        lm = LanguageHead(out) if self.lm else None
        net = Transformer(
            self, embed, blocks, norm(), lm, causal=True, width=self.width, relative=ALiBi(self.heads), label_bias=False,
            dropouts={"tag": self.dropout},
        )  # fmt: skip
        return initialise(net)

    def _attention(self) -> Attention:
        return Attention(self.width, self.heads, dropout=self.attention_dropout)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Bloom":
        read = Reader(config)
        if read("apply_residual_connection_post_layernorm", False):
            raise ValueError("config.json asks for apply_residual_connection_post_layernorm, which bloom here does not have")
        return cls(
            vocab=read("vocab_size"),
            width=read("hidden_size", None) or read("n_embed"),
            layers=read("n_layer", None) or read("num_hidden_layers"),
            heads=read("n_head", None) or read("num_attention_heads"),
            positions=read("seq_length", 2048),
            eps=read("layer_norm_epsilon", 1e-5),
            tied=bool(read("tie_word_embeddings", True)),
            dropout=read("hidden_dropout", 0.0),
            attention_dropout=read("attention_dropout", 0.0),
        )

    def fit(self, stored: set[str]) -> "Bloom":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        bare = (
            not self.tied and "lm_head.weight" not in stored and bool(stored & {"score.weight", "classifier.weight", "qa_outputs.weight"})
        )
        return replace(self, lm=not bare)

    def saved(self) -> "Bloom":
        return self

    def to_config(self) -> dict[str, Any]:
        return {
            "architectures": ["BloomForCausalLM"], "model_type": "bloom", "vocab_size": self.vocab, "hidden_size": self.width,
            "n_layer": self.layers, "n_head": self.heads, "seq_length": self.positions, "layer_norm_epsilon": self.eps,
            "tie_word_embeddings": self.tied, "hidden_dropout": self.dropout, "attention_dropout": self.attention_dropout,
            "apply_residual_connection_post_layernorm": False, "initializer_range": 0.02,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = {"embed.token.weight": Name("transformer.word_embeddings.weight")}
        table |= linear("embed.norm", "transformer.word_embeddings_layernorm", True) | linear("norm", "transformer.ln_f", True)
        if "lm" in heads and not self.tied:
            table["heads.lm.out.weight"] = Name("lm_head.weight")
        head = self.width // self.heads
        paths = {"attn.o": "self_attention.dense", "ffn.up": "mlp.dense_h_to_4h", "ffn.down": "mlp.dense_4h_to_h"}
        paths |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
        for i in range(self.layers):
            ours, theirs = f"blocks.{i}.", f"transformer.h.{i}."
            for j, role in enumerate("qkv"):  # of each head in turn
                fused = f"{theirs}self_attention.query_key_value"
                table |= linear(f"{ours}attn.{role}", fused, True, rows=(j * head, (j + 1) * head), every=3 * head)
            for role, path in paths.items():
                table |= linear(ours + role, theirs + path, True)
        labels = {"classify": "score", "regress": "score", "tag": "classifier", "spans": "qa_outputs", "choose": "score"}
        for kind in heads.keys() & labels.keys():
            table |= linear(f"heads.{kind}.out", labels[kind], kind in ("tag", "spans"))
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor."""
        return name if name.startswith(("transformer.", "lm_head.", "score.", "classifier.", "qa_outputs.")) else f"transformer.{name}"
