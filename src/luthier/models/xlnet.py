"""XLNet: any order of prediction, by two streams over relative positions and segments. Yang et al. 2019, arXiv:1906.08237, section 2.

The content stream knows each token, the query stream only where it stands; both have the same weights and look at the content. `allow`
says who comes before whom in the chosen order, `targets` which positions are predicted.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.attention import Mask
from luthier.core.block import Block, PostNorm
from luthier.core.cache import Cache
from luthier.core.feedforward import FeedForward
from luthier.core.heads import LanguageHead
from luthier.core.names import Name, linear
from luthier.core.recompute import recomputed
from luthier.core.recurrent import Recurrent, initialise_relative
from luthier.core.relative import Relative, RelativeAttention, distances
from luthier.core.transformer import Embedding, initialise
from luthier.models._config import STORED, Reader, check_even, check_heads

HEADS = {"classify": "logits_proj", "regress": "logits_proj", "choose": "logits_proj", "tag": "classifier", "spans": "qa_outputs"}
ALL = 1 << 30  # tokens of memory: no limit


@dataclass(frozen=True)
class XLNet:
    vocab: int = 32_000
    width: int = 768
    layers: int = 12
    heads: int = 12
    head_width: int = 0  # 0: width / heads
    hidden: int = 3072
    memory: int = 0  # tokens of earlier segments; 0: all of them
    clamp: int = 0  # distances beyond are alike; 0: none are
    eps: float = 1e-12
    act: str = "gelu"
    dropout: float = 0.1
    label_dropout: float = 0.1
    lm: bool = True

    types: ClassVar[tuple[str, ...]] = ("xlnet",)
    verified: ClassVar[str] = "transformers 5.23 XLNetLMHeadModel and its heads, fp64, T=200, both streams, memory, both directions"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "xlnet-base-cased": {},
        "xlnet-large-cased": {"width": 1024, "layers": 24, "heads": 16, "hidden": 4096},
    }

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, head_width=self.head_width)
        check_even(self.width)

    @property
    def head(self) -> int:
        return self.head_width or self.width // self.heads

    def build(self) -> "TwoStreams":
        norm = partial(nn.LayerNorm, self.width, self.eps)
        ffn = partial(FeedForward, self.width, self.hidden, self.act, drop=self.dropout)
        blocks = [PostNorm(self._attention(), ffn(), norm, dropout=self.dropout) for _ in range(self.layers)]  # type: ignore[arg-type]
        embed = Embedding(nn.Embedding(self.vocab, self.width), dropout=self.dropout)
        out = nn.Linear(self.width, self.vocab)  # the weight is the embedding's, the bias its own
        out.weight = embed.token.weight
        net = TwoStreams(
            self, embed, blocks, None, LanguageHead(out) if self.lm else None, causal=False, width=self.width,
            memory=self.memory or ALL, clamp=self.clamp, dropout=self.dropout, label_dropout=self.label_dropout,
        )  # fmt: skip
        initialise(net)
        initialise_relative(net)
        return net

    def _attention(self) -> RelativeAttention:
        return RelativeAttention(self.width, self.heads, self.head, self.memory or ALL, segments=True, dropout=self.dropout)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "XLNet":
        read = Reader(config)
        if read("attn_type", "bi") != "bi" or read("bi_data", False):
            raise ValueError("config.json asks for attn_type other than 'bi', or for bi_data, which xlnet here does not have")
        if (read("summary_type", "last"), read("summary_use_proj", True), read("summary_activation", "tanh")) != ("last", True, "tanh"):
            raise ValueError("config.json asks for a summary other than the last state through a tanh layer, which is not here")
        width, heads = read("d_model"), read("n_head")
        head = read("d_head", None) or width // heads
        return cls(
            vocab=read("vocab_size"),
            width=width,
            layers=read("n_layer"),
            heads=heads,
            head_width=0 if head * heads == width else head,
            hidden=read("d_inner"),
            memory=read("mem_len", None) or 0,
            clamp=max(0, read("clamp_len", -1)),
            eps=read("layer_norm_eps", 1e-12),
            act=read.activation("ff_activation", "gelu"),
            dropout=read("dropout", 0.1),
            label_dropout=read("summary_last_dropout", 0.1),
        )

    def fit(self, stored: set[str]) -> "XLNet":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return replace(self, lm="lm_loss.bias" in stored)

    def saved(self) -> "XLNet":
        return self

    def to_config(self) -> dict[str, Any]:
        return {
            "architectures": ["XLNetLMHeadModel" if self.lm else "XLNetModel"], "model_type": "xlnet", "vocab_size": self.vocab,
            "d_model": self.width, "n_layer": self.layers, "n_head": self.heads, "d_head": self.head, "d_inner": self.hidden,
            "mem_len": self.memory or None, "clamp_len": self.clamp or -1, "layer_norm_eps": self.eps,
            "ff_activation": STORED.get(self.act, self.act), "dropout": self.dropout, "summary_last_dropout": self.label_dropout,
            "attn_type": "bi", "bi_data": False, "summary_type": "last", "summary_use_proj": True, "summary_activation": "tanh",
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        table = {"embed.token.weight": Name("transformer.word_embedding.weight"), "mask_vector": Name("transformer.mask_emb")}
        if "lm" in heads:
            table["heads.lm.out.bias"] = Name("lm_loss.bias")
        raw = (self.width, self.heads, self.head)
        for i in range(self.layers):
            ours, theirs = f"blocks.{i}.", f"transformer.layer.{i}."
            table |= {f"{ours}attn.{role}.weight": Name(f"{theirs}rel_attn.{role}", True, shape=raw) for role in "qkvr"}
            table[f"{ours}attn.o.weight"] = Name(f"{theirs}rel_attn.o", shape=raw)
            vectors = {"content": "r_w_bias", "distance": "r_r_bias", "segment": "r_s_bias", "segments": "seg_embed"}
            table |= {f"{ours}attn.{mine}": Name(f"{theirs}rel_attn.{name}") for mine, name in vectors.items()}
            table |= linear(f"{ours}attn_norm", f"{theirs}rel_attn.layer_norm", True)
            table |= linear(f"{ours}ffn_norm", f"{theirs}ff.layer_norm", True)
            table |= linear(f"{ours}ffn.up", f"{theirs}ff.layer_1", True) | linear(f"{ours}ffn.down", f"{theirs}ff.layer_2", True)
        if heads.keys() & {"classify", "regress", "choose"}:
            table |= linear("pooler.dense", "sequence_summary.summary", True)
        for kind in heads.keys() & HEADS.keys():
            table |= linear(f"heads.{kind}.out", HEADS[kind], True)
        return table

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for what is not ours: the tied output matrix."""
        if name == "lm_loss.weight":
            return None
        return f"transformer.{name}" if name.startswith(("layer.", "mask_emb", "word_embedding.")) else name


class TwoStreams(Recurrent):
    """mask_vector (1, 1, D): what every query starts from."""

    asks = True

    def __init__(self, *parts: Any, **others: Any):
        super().__init__(*parts, **others)
        self.pool = "last"
        self.mask_vector = nn.Parameter(torch.randn(1, 1, self.width) * self.init_std)

    def hidden(  # type: ignore[override]
        self,
        ids: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: tuple[int, ...] | None = None,
        types: Tensor | None = None,
        cache: Cache | None = None,
        allow: Tensor | None = None,
        targets: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        """The content's states (B, T, D), or with targets (B, N), positions, the queries' there (B, N, D).

        allow (B or 1, T, T) bool: which tokens the query at a position looks at; the content sees its own token besides. A query that
        sees nothing, as the first of an order without a memory, gets nothing from attention.
        """
        if lengths is not None or any(value is not None for value in others.values()):
            if allow is not None or targets is not None:
                raise ValueError("XLNet takes an order of prediction (allow, targets) for padded rows, not for packed ones")
            return super().hidden(ids, mask, lengths=lengths, types=types, cache=cache, **others)
        if targets is not None and allow is None:
            raise ValueError("targets need allow: which tokens each of them may look at")
        own = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
        h, context = self.entered(ids, mask, types, cache, None if allow is None else allow | own)
        g = None if targets is None else self.embed.dropout(self.mask_vector.expand(*ids.shape, -1))
        queries = self.among(context.mask, allow, context.mask.allow)
        for layer, index in enumerate(self.order):
            block = self.blocks[index]
            seen = h if cache is None else cache.recall(layer, h, self.memory)
            if g is not None:
                g = self._run(block, g, seen, queries, context.bias)
            h = self._run(block, h, seen, context.mask, context.bias)
        if g is None or targets is None:
            return self.dropout(context.taken(h))
        return self.dropout(g.gather(1, targets[..., None].expand(-1, -1, self.width)))

    def following(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, V) scores behind each row: a query at the next place looks at the whole text, whose tokens see each other.

        Each new token changes the states of all others, in every layer but the first, so there is nothing a cache could keep.
        """
        h, context = self.entered(ids, mask, None, None)
        ahead = Relative(self.dropout(distances(h.shape[1], 0, self.width, self.clamp, h)))
        g = self.embed.dropout(self.mask_vector.expand(len(h), 1, -1))
        for layer, index in enumerate(self.order):
            g = self._run(self.blocks[index], g, h, context.mask, ahead)
            if layer + 1 < len(self.order):  # nobody asks for what the last layer makes of the text
                h = self._run(self.blocks[index], h, h, context.mask, context.bias)
        return self.logits(self.dropout(g))[:, 0]

    def among(self, content: Mask, allow: Tensor | None, wide: Tensor | None) -> Mask:
        """The queries' mask: the content's without each token's own."""
        if allow is None or wide is None:
            return content
        memory = wide.shape[-1] - allow.shape[-1]
        return replace(content, allow=torch.cat([wide[..., :memory], allow.view(-1, 1, *allow.shape[-2:])], -1))

    def _run(self, block: nn.Module, x: Tensor, seen: Tensor, mask: Mask, relative: Any) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return recomputed(stream, block, x, seen, mask, relative)
        return stream(block, x, seen, mask, relative)


def stream(block: nn.Module, x: Tensor, seen_BSD: Tensor, mask: Mask, relative: Relative) -> Tensor:
    """A block on one stream, which looks at the content."""
    assert isinstance(block, Block)
    x = block.attn_norm(x + block.attn_dropout(block.attn(x, mask, None, relative, memory_BSD=seen_BSD)))  # type: ignore[arg-type]
    return block.ffn_norm(x + block.dropout(block.ffn(x)))
