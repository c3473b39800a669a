"""Baichuan: LLaMA with q, k, v stored as one matrix, W_pack. Yang et al. 2023, arXiv:2309.10305, section 2.

The 7B models have rotary positions, the 13B ones ALiBi. Baichuan 2 compares states with output rows of length 1 (NormHead, section 2.5).
All say model_type "baichuan": those with ALiBi have no max_position_embeddings in config.json; the second generation is told by its
vocabulary or by z_loss_weight.
Baichuan-7B is saved as the LLaMA that it is, so that everyone can read it.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from luthier.core.attention import Attention
from luthier.core.heads import NormHead
from luthier.core.names import Name
from luthier.core.position import ALiBi, Rotary
from luthier.core.transformer import Transformer
from luthier.models._config import Reader, check_heads
from luthier.models._llama import Projection, decoder, headless, llama_alias, llama_names, llama_projections, rotary_config
from luthier.models._rope import read_rope, write_rope

SECOND = 125_696  # the vocabulary of Baichuan 2


@dataclass(frozen=True)
class Baichuan:
    vocab: int = 64_000
    width: int = 4096
    layers: int = 32
    heads: int = 32
    hidden: int = 11_008
    positions: int = 4096
    alibi: bool = False  # otherwise rotary positions
    theta: float = 10_000.0
    eps: float = 1e-6
    act: str = "silu"
    norm_head: bool = False
    kind: str = "baichuan"  # llama: under that model's names
    lm: bool = True  # the language-model head; a classifier's checkpoint has none of its own

    types: ClassVar[tuple[str, ...]] = ("baichuan",)
    verified: ClassVar[str] = (
        "outputs of the code published with Baichuan2-13B (ALiBi, NormHead); 7B: transformers 5.23 LlamaForCausalLM, fp64, T=200"
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "baichuan-7b": {},
        "baichuan-13b": {"width": 5120, "layers": 40, "heads": 40, "hidden": 13_696, "alibi": True},
        "baichuan2-7b": {"vocab": 125_696, "norm_head": True},
        "baichuan2-13b": {
            "vocab": 125_696, "width": 5120, "layers": 40, "heads": 40, "hidden": 13_696, "alibi": True, "norm_head": True,
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, rotary=not self.alibi)

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def tied(self) -> bool:
        return False

    def build(self) -> Transformer:
        places: dict[str, Any] = {"relative": ALiBi(self.heads)} if self.alibi else {"rotary": Rotary(self.width // self.heads, self.theta)}
        return decoder(self, self._attention, out=NormHead(self.width, self.vocab) if self.norm_head else None, **places)

    def _attention(self, layer: int) -> Attention:
        return Attention(self.width, self.heads, bias=False)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Baichuan":
        read = Reader(config)
        if read("tie_word_embeddings", False):
            raise ValueError("config.json asks for tie_word_embeddings=true, which baichuan does not have")
        positions = read("max_position_embeddings", None)
        longest = positions or read("model_max_length", 4096)
        theta, scaling = read_rope(read, longest)
        if scaling is not None:
            raise ValueError(f"config.json asks for rotary scaling {scaling.kind!r}, which baichuan does not have")
        return cls(
            vocab=read("vocab_size"),
            width=read("hidden_size"),
            layers=read("num_hidden_layers"),
            heads=read("num_attention_heads"),
            hidden=read("intermediate_size"),
            positions=longest,
            alibi=positions is None,
            theta=theta,
            eps=read("rms_norm_eps", 1e-6),
            act=read.activation("hidden_act", "silu"),
            norm_head=read("vocab_size") == SECOND or read("z_loss_weight", None) is not None,
        )

    def fit(self, stored: set[str]) -> "Baichuan":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return replace(self, lm=not headless(self, stored))

    def saved(self) -> "Baichuan":
        """The architecture under whose names it is saved: LLaMA's, where it is no more than that."""
        return self if self.alibi or self.norm_head else replace(self, kind="llama")

    def to_config(self) -> dict[str, Any]:
        config = rotary_config(self) | {"model_type": self.kind}
        if self.kind == "llama":
            return config | {"architectures": ["LlamaForCausalLM"]} | write_rope(self.theta, None, self.positions)
        config |= {"architectures": ["BaichuanForCausalLM"], "model_max_length": self.positions, "rope_theta": self.theta}
        if self.alibi:
            del config["max_position_embeddings"]
        return config | ({"z_loss_weight": 0} if self.norm_head else {})

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        plain = llama_projections(False, False, False)
        if self.kind == "llama":
            return llama_names(self.layers, plain, heads, False)
        packed: list[Projection] = [
            (f"attn.{role}", "self_attn.W_pack", False, (j * self.width, (j + 1) * self.width)) for j, role in enumerate("qkv")
        ]
        return llama_names(self.layers, [*packed, *plain[3:]], heads, False)

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for buffers that old files hold."""
        return None if name.endswith("alibi_mask") else llama_alias(name)
