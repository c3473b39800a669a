"""ChatGLM-6B: a text sees itself both ways, its answer goes from left to right. Du et al. 2022, arXiv:2103.10360; Zeng et al. 2023, arXiv:2210.02414.

Input is `context [gMASK] <sop> answer <eop>`. Every token before <sop> is seen by all. Half of each head is turned by a token's place in
the context (an answer's tokens all stand where [gMASK] stands), the other half by its place in the answer (0 in the context, then 1, 2, ...).
Each sublayer is alpha * norm(x) + f(norm(x)), alpha = sqrt(2 * layers): the normed input is carried.

B batch, T length, R pairs of dimensions that turn, P parts of a head (two)
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.attention import Attention
from luthier.core.block import Block, Context
from luthier.core.feedforward import FeedForward
from luthier.core.heads import LanguageHead
from luthier.core.names import Name, linear
from luthier.core.position import Rotary, Rotation
from luthier.core.transformer import Embedding, Transformer, initialise
from luthier.lookup import lookup
from luthier.models._config import Reader, check_heads


class Carried(Block):
    """alpha * norm(x) + f(norm x) for each sublayer f."""

    def __init__(self, attn: Attention, ffn: nn.Module, norm: partial[nn.LayerNorm], alpha: float):
        super().__init__(attn, ffn, norm)
        self.alpha = alpha

    def forward(self, x: Tensor, context: Context, layer: int) -> Tensor:
        x = self.attn_norm(x)
        x = self.alpha * x + self.attention(x, context, layer)
        x = self.ffn_norm(x)
        return self.alpha * x + self.ffn(x)


class TwoRotary(Rotary):
    """One rotation for each half of a head."""

    def forward(self, position_BT: Tensor, dtype: torch.dtype) -> Rotation:
        """position (B, T, 2): the place in the context and the place in the answer."""
        cos, sin, _ = super().forward(position_BT.flatten(1), dtype)
        return Rotation(cos.unflatten(1, (-1, 2)), sin.unflatten(1, (-1, 2)))


class Prefixed(Transformer):
    """Finds the context of each row by itself, and gives its tokens both of their places."""

    placed = True

    def enter(self, ids, mask=None, lengths=None, prompts=None, types=None, positions=None, cache=None, allow=None, **extra):  # type: ignore[override]
        if cache is not None and cache.length:
            positions, prompts = self._go_on(ids, cache), None
        else:
            real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
            sizes = lengths or (ids.shape[1],)
            parts = [self._places(part, seen) for part, seen in zip(ids.split(sizes, 1), real.split(sizes, 1), strict=True)]
            positions = torch.cat([place for place, _ in parts], 1)
            contexts = torch.cat([context for _, context in parts])
            prompts = prompts or (tuple(contexts.tolist()) if bool(contexts.any()) else None)
            if cache is not None:
                cache.notes["last"] = positions[:, -1]
        return super().enter(ids, mask, lengths, prompts, types, positions, cache, allow, **extra)

    def _places(self, ids_BT: Tensor, real_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Both places of each token (B, T, 2), and how many columns hold the context (B,)."""
        begun_BT = (ids_BT == self.config.start).cumsum(1) > 0
        context_B = (~begun_BT).sum(1) * begun_BT.any(1)  # without a start token, all is an answer to an empty context
        answer_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None] >= context_B[:, None]
        place_BT = ((real_BT & ~answer_BT).cumsum(1) - 1).clamp(min=0)
        blanks_BT = torch.isin(ids_BT, torch.tensor(self.config.blanks, device=ids_BT.device)) & ~answer_BT
        first_B = torch.where(blanks_BT.any(1), blanks_BT.long().argmax(1), (context_B - 1).clamp(min=0))
        place_BT = torch.where(answer_BT, place_BT.gather(1, first_B[:, None]), place_BT)
        block_BT = (real_BT & answer_BT).cumsum(1)
        return torch.stack([place_BT, block_BT], -1), context_B

    def _go_on(self, ids_BT: Tensor, cache: Any) -> Tensor:
        """Places of tokens that follow those in the cache: the answer goes on."""
        if bool((ids_BT == self.config.start).any()):
            raise ValueError("a context sees itself both ways, so it is read in one pass with its start token; start with an empty cache")
        last_BP = cache.notes["last"]
        steps_T = torch.arange(1, ids_BT.shape[1] + 1, device=ids_BT.device)
        place_BTP = torch.stack([last_BP[:, :1].expand(-1, len(steps_T)), last_BP[:, 1:] + steps_T], -1)
        cache.notes["last"] = place_BTP[:, -1]
        return place_BTP


@dataclass(frozen=True)
class ChatGLM:
    vocab: int = 130_528
    width: int = 4096
    layers: int = 28
    heads: int = 32
    hidden: int = 16_384
    positions: int = 2048
    theta: float = 10_000.0
    eps: float = 1e-5
    act: str = "gelu_tanh"
    tied: bool = False
    start: int = 130_004  # <sop>
    blanks: tuple[int, ...] = (130_000, 130_001)  # [MASK] and [gMASK]: where the answer belongs

    types: ClassVar[tuple[str, ...]] = ("chatglm",)
    verified: ClassVar[str] = "closed form and the published count; transformers 5.23 has no such class and the weights were not loaded"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"chatglm-6b": {}}

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads)
        if self.width // self.heads % 4:
            raise ValueError(f"a head of {self.width // self.heads} dimensions has no two halves of pairs; change width or heads")

    def build(self) -> Transformer:
        norm = partial(nn.LayerNorm, self.width, self.eps)
        alpha, head = (2 * self.layers) ** 0.5, self.width // self.heads
        blocks = [
            Carried(Attention(self.width, self.heads), FeedForward(self.width, self.hidden, self.act), norm, alpha)
            for _ in range(self.layers)
        ]
        embed, out = Embedding(nn.Embedding(self.vocab, self.width)), nn.Linear(self.width, self.vocab, bias=False)
        if self.tied:
            out.weight = embed.token.weight
        rotary = TwoRotary(head // 2, self.theta)
        net = Prefixed(self, embed, blocks, norm(), LanguageHead(out), causal=True, width=self.width, rotary=rotary, label_bias=False)
        return initialise(net)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Its successors call themselves chatglm too: those that say ffn_hidden_size are GLM's."""
        if "ffn_hidden_size" in config:
            return lookup("models", "glm").from_config(config)
        read = Reader(config)
        if not read("position_encoding_2d", True) or read("pre_seq_len", None):
            raise ValueError("config.json asks for one-dimensional positions or prefix tuning, which chatglm here does not have")
        return cls(
            vocab=read("vocab_size"),
            width=read("hidden_size"),
            layers=read("num_layers"),
            heads=read("num_attention_heads"),
            hidden=read("inner_hidden_size"),
            positions=read("max_sequence_length", 2048),
            eps=read("layernorm_epsilon", 1e-5),
            start=read("bos_token_id"),
            blanks=(read("mask_token_id", 130_000), read("gmask_token_id", 130_001)),
        )

    def fit(self, stored: set[str]) -> "ChatGLM":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return replace(self, tied="lm_head.weight" not in stored)

    def saved(self) -> "ChatGLM":
        return self

    def to_config(self) -> dict[str, Any]:
        return {
            "architectures": ["ChatGLMModel"], "model_type": "chatglm", "vocab_size": self.vocab, "hidden_size": self.width,
            "num_layers": self.layers, "num_attention_heads": self.heads, "inner_hidden_size": self.hidden,
            "max_sequence_length": self.positions, "layernorm_epsilon": self.eps, "position_encoding_2d": True,
            "bos_token_id": self.start, "mask_token_id": self.blanks[0], "gmask_token_id": self.blanks[-1],
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        head = self.width // self.heads
        table = {"embed.token.weight": Name("transformer.word_embeddings.weight")} | linear("norm", "transformer.final_layernorm", True)
        if "lm" in heads and not self.tied:
            table["heads.lm.out.weight"] = Name("lm_head.weight")
        roles = {
            "attn.o": "attention.dense", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
            "ffn.up": "mlp.dense_h_to_4h", "ffn.down": "mlp.dense_4h_to_h",
        }  # fmt: skip
        for i in range(self.layers):
            ours, theirs = f"blocks.{i}.", f"transformer.layers.{i}."
            for j, role in enumerate("qkv"):  # head by head: its query, its key, its value
                rows = (j * head, (j + 1) * head)
                table |= linear(f"{ours}attn.{role}", f"{theirs}attention.query_key_value", True, rows=rows, every=3 * head)
            for role, path in roles.items():
                table |= linear(ours + role, theirs + path, True)
        for kind in heads.keys() & {"classify", "regress", "tag", "choose", "spans"}:
            table |= linear(f"heads.{kind}.out", "qa_outputs" if kind == "spans" else "score", kind in ("tag", "spans"))
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for the rotary buffers."""
        return None if name.endswith("inv_freq") else name
