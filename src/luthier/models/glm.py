"""GLM as a decoder: RMSNorm, half of each head rotary by neighbouring pairs, few key-value heads. GLM team 2024, arXiv:2406.12793, section 2.

ChatGLM2, ChatGLM3 and GLM-4 in the form their code calls chatglm, GLM-4 in transformers' form, and the 0414 models (glm4), whose blocks norm
each sublayer's output too. The first ChatGLM-6B, which is no plain decoder, is in chatglm.py.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from luthier.core.attention import Attention
from luthier.core.block import Block, Context, PreNorm
from luthier.core.feedforward import GatedFeedForward
from luthier.core.heads import LanguageHead
from luthier.core.names import Name, linear
from luthier.core.norm import RMSNorm
from luthier.core.position import Rotary
from luthier.core.transformer import Embedding, Transformer, initialise
from luthier.models._config import Reader, check_heads

CLASSES = {"glm": "GlmForCausalLM", "glm4": "Glm4ForCausalLM", "chatglm": "ChatGLMModel"}
# What ChatGLM's code can switch and no published model has.
SWITCHES = {"multi_query_attention": True, "add_bias_linear": False, "rmsnorm": True, "post_layer_norm": True, "original_rope": True}
SWITCHES |= {"apply_residual_connection_post_layernorm": False}


class Sandwich(Block):
    """x + norm(f(norm x)) for each sublayer f. GLM-4-0414."""

    def __init__(self, attn: Attention, ffn: nn.Module, norm: partial[RMSNorm]):
        super().__init__(attn, ffn, norm)
        self.attn_out_norm, self.ffn_out_norm = norm(), norm()

    def forward(self, x: Tensor, context: Context, layer: int) -> Tensor:
        x = x + self.attn_out_norm(self.attention(self.attn_norm(x), context, layer))
        return x + self.ffn_out_norm(self.ffn(self.ffn_norm(x)))


@dataclass(frozen=True)
class GLM:
    vocab: int = 151_552
    width: int = 4096
    layers: int = 40
    heads: int = 32
    kv_heads: int = 2
    hidden: int = 13_696
    head_width: int = 128
    turned: int = 64  # how many dimensions of a head are rotary
    positions: int = 8192
    theta: float = 10_000.0
    eps: float = 1.5625e-07
    act: str = "silu"
    tied: bool = False
    qkv_bias: bool = True
    dropout: float = 0.0  # on attention probabilities
    kind: str = "glm"  # config.json's model_type
    lm: bool = True

    types: ClassVar[tuple[str, ...]] = ("glm", "glm4")
    verified: ClassVar[str] = "transformers 5.23 Glm- and Glm4ForCausalLM, fp64, T=200, both directions; ChatGLM2/3 as Glm by its key map"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "chatglm2-6b": {"vocab": 65_024, "layers": 28, "positions": 32_768, "eps": 1e-5, "kind": "chatglm"},
        "chatglm3-6b": {"vocab": 65_024, "layers": 28, "positions": 8192, "eps": 1e-5, "kind": "chatglm"},
        "glm-4-9b": {},
        "glm-4-9b-chat": {"positions": 131_072, "theta": 5_000_000.0},
    }

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, self.kv_heads, self.head_width, rotary=True)
        if isinstance(self.turned, int) and (self.turned % 2 or self.turned > self.head_width):
            raise ValueError(f"turned={self.turned} must be even, and at most head_width={self.head_width}: rotary positions turn pairs")

    def build(self) -> Transformer:
        norm = partial(RMSNorm, self.width, self.eps)
        block = Sandwich if self.kind == "glm4" else PreNorm
        blocks = [
            block(self._attention(), GatedFeedForward(self.width, self.hidden, self.act, bias=False), norm) for _ in range(self.layers)
        ]
        embed, out = Embedding(nn.Embedding(self.vocab, self.width)), nn.Linear(self.width, self.vocab, bias=False)
        if self.tied:
            out.weight = embed.token.weight
        rotary = Rotary(self.head_width, self.theta, turned=self.turned, interleaved=True)
        lm = LanguageHead(out) if self.lm else None
        net = Transformer(self, embed, blocks, norm(), lm, causal=True, width=self.width, rotary=rotary, label_bias=False)
        return initialise(net)

    def _attention(self) -> Attention:
        return Attention(
            self.width, self.heads, kv_heads=self.kv_heads, head_width=self.head_width, bias=self.qkv_bias, out_bias=False,
            dropout=self.dropout,
        )  # fmt: skip

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GLM":
        read = Reader(config)
        if read("model_type", "glm") == "chatglm":
            return cls._from_chatglm(read)
        width, heads = read("hidden_size"), read("num_attention_heads")
        head = read("head_dim", None) or width // heads
        rope = read("rope_parameters", None) or {}
        return cls(
            vocab=read("vocab_size"),
            width=width,
            layers=read("num_hidden_layers"),
            heads=heads,
            kv_heads=read("num_key_value_heads", None) or heads,
            hidden=read("intermediate_size"),
            head_width=head,
            turned=int(head * rope.get("partial_rotary_factor", read("partial_rotary_factor", 0.5))),
            positions=read("max_position_embeddings", 131_072),
            theta=read.rope_theta(),
            eps=read("rms_norm_eps", 1.5625e-07),
            act=read.activation("hidden_act", "silu"),
            tied=bool(read("tie_word_embeddings", False)),
            qkv_bias=bool(read("attention_bias", True)),
            dropout=read("attention_dropout", 0.0),
            kind=read("model_type", "glm"),
        )

    @classmethod
    def _from_chatglm(cls, read: Reader) -> "GLM":
        for key, value in SWITCHES.items():
            if bool(read(key, value)) != value:
                raise ValueError(f"config.json asks for {key}={str(not value).lower()}, which glm here does not have")
        return cls(
            vocab=read("padded_vocab_size", None) or read("vocab_size"),
            width=read("hidden_size"),
            layers=read("num_layers"),
            heads=read("num_attention_heads"),
            kv_heads=read("multi_query_group_num", 2),
            hidden=read("ffn_hidden_size"),
            head_width=read("kv_channels", 128),
            turned=read("kv_channels", 128) // 2,
            positions=read("seq_length", 8192),
            theta=10_000.0 * read("rope_ratio", 1),
            eps=read("layernorm_epsilon", 1e-5),
            tied=bool(read("tie_word_embeddings", False)),
            qkv_bias=bool(read("add_qkv_bias", True)),
            dropout=read("attention_dropout", 0.0),
            kind="chatglm",
        )

    def fit(self, stored: set[str]) -> "GLM":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        bare = not self.tied and "lm_head.weight" not in stored and bool(stored & {"score.weight", "classifier.weight"})
        return replace(self, lm=not bare)

    def saved(self) -> "GLM":
        """The architecture under whose names it is saved: ChatGLM2 and 3 as the GLM they are, so that transformers reads them."""
        return replace(self, kind="glm") if self.kind == "chatglm" else self

    def to_config(self) -> dict[str, Any]:
        rope = {"rope_type": "default", "rope_theta": self.theta, "partial_rotary_factor": self.turned / self.head_width}
        if self.kind == "chatglm":
            return {
                "architectures": [CLASSES[self.kind]], "model_type": "chatglm", "padded_vocab_size": self.vocab, "hidden_size": self.width,
                "num_layers": self.layers, "num_attention_heads": self.heads, "multi_query_attention": True,
                "multi_query_group_num": self.kv_heads, "ffn_hidden_size": self.hidden, "kv_channels": self.head_width,
                "seq_length": self.positions, "rope_ratio": self.theta / 10_000.0, "layernorm_epsilon": self.eps, "rmsnorm": True,
                "tie_word_embeddings": self.tied, "add_bias_linear": False, "add_qkv_bias": self.qkv_bias,
                "attention_dropout": self.dropout,
            }  # fmt: skip
        return {
            "architectures": [CLASSES[self.kind]], "model_type": self.kind, "vocab_size": self.vocab, "hidden_size": self.width,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.hidden, "head_dim": self.head_width, "max_position_embeddings": self.positions,
            "rope_theta": self.theta, "partial_rotary_factor": self.turned / self.head_width, "rope_parameters": rope,
            "rms_norm_eps": self.eps, "hidden_act": self.act, "tie_word_embeddings": self.tied, "attention_bias": self.qkv_bias,
            "attention_dropout": self.dropout, "initializer_range": 0.02, "pad_token_id": None,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        chat = self.kind == "chatglm"
        top = "transformer.encoder." if chat else "model."
        table = {
            "embed.token.weight": Name("transformer.embedding.word_embeddings.weight" if chat else "model.embed_tokens.weight"),
            "norm.weight": Name(f"{top}{'final_layernorm' if chat else 'norm'}.weight"),
        }
        if "lm" in heads and not self.tied:
            table["heads.lm.out.weight"] = Name("transformer.output_layer.weight" if chat else "lm_head.weight")
        for i in range(self.layers):
            ours, theirs = f"blocks.{i}.", f"{top}layers.{i}."
            for role, path in self._norms().items():
                table[f"{ours}{role}.weight"] = Name(f"{theirs}{path}.weight")
            for role, path, bias, rows in self._projections(chat):
                table |= linear(ours + role, theirs + path, bias, rows=rows)
        for kind in heads.keys() & {"classify", "regress", "tag", "choose", "spans"}:
            table |= linear(f"heads.{kind}.out", "qa_outputs" if kind == "spans" else "score", kind in ("tag", "spans"))
        return table

    def _norms(self) -> dict[str, str]:
        around = {"attn_out_norm": "post_self_attn_layernorm", "ffn_out_norm": "post_mlp_layernorm"} if self.kind == "glm4" else {}
        return {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"} | around

    def _projections(self, chat: bool) -> list[tuple[str, str, bool, tuple[int, int] | None]]:
        """Ours, theirs, whether there is a bias, and the rows where theirs holds several of ours."""
        q, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        rows = {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}
        if chat:
            attn = [(f"attn.{role}", "self_attention.query_key_value", self.qkv_bias, span) for role, span in rows.items()]
        else:
            attn = [(f"attn.{role}", f"self_attn.{role}_proj", self.qkv_bias, None) for role in rows]
        out, both, down = (
            ("self_attention.dense", "dense_h_to_4h", "dense_4h_to_h") if chat else ("self_attn.o_proj", "gate_up_proj", "down_proj")
        )
        halves = {"gate": (0, self.hidden), "up": (self.hidden, 2 * self.hidden)}
        ffn = [(f"ffn.{role}", f"mlp.{both}", False, span) for role, span in halves.items()]
        return [*attn, ("attn.o", out, False, None), *ffn, ("ffn.down", f"mlp.{down}", False, None)]

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for buffers that old files hold."""
        if name.endswith("inv_freq"):
            return None
        tops = ("transformer.",) if self.kind == "chatglm" else ("model.", "lm_head.", "score.", "classifier.", "qa_outputs.")
        return name if name.startswith(tops) else f"{tops[0]}{name}"
