"""Transformer-XL: segments that remember, relative positions, adaptive input and softmax. Dai et al. 2019, arXiv:1901.02860, section 3."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from luthier.core.adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from luthier.core.block import PostNorm, PreNorm
from luthier.core.feedforward import FeedForward
from luthier.core.heads import LanguageHead
from luthier.core.names import Name, linear
from luthier.core.recurrent import Recurrent, initialise_relative
from luthier.core.relative import RelativeAttention
from luthier.core.transformer import Embedding, initialise
from luthier.models._config import Reader, check_even, check_heads
from luthier.models._llama import label_names


@dataclass(frozen=True)
class TransformerXL:
    vocab: int = 267_735
    width: int = 1024
    layers: int = 18
    heads: int = 16
    head_width: int = 64
    hidden: int = 4096
    vectors: int = 0  # width of the most frequent words' vectors; 0: the model's
    cuts: tuple[int, ...] = (20_000, 40_000, 200_000)  # where the parts of the vocabulary end; (): one plain softmax
    divide: int = 4  # each part's vectors are so many times narrower than the last one's
    memory: int = 1600  # tokens of earlier segments
    clamp: int = 1000  # distances beyond are alike; 0: none are
    same: bool = True  # every query looks back over `memory` tokens; else from the start of the memory
    pre: bool = False  # norms before the sublayers
    untied: bool = True  # each layer has its own vectors u and v
    share: bool = True  # input and softmax project with the same matrices, but for the most frequent words
    tied: bool = True  # input and softmax have the same vectors
    backwards: bool = False  # the softmax finds the last part first, as the first published code does
    eps: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.0

    types: ClassVar[tuple[str, ...]] = ("transfo-xl",)
    verified: ClassVar[str] = "transformers 4.57.6 TransfoXLLMHeadModel over 4 segments from an empty memory; the softmax in both orders"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "transfo-xl-wt103": {},
        "transfo-xl-wt103-base": {
            "width": 410, "layers": 16, "heads": 10, "head_width": 41, "hidden": 2100, "divide": 1, "memory": 640, "clamp": 400,
        },
        "transfo-xl-enwik8-12": {
            "vocab": 204, "width": 512, "layers": 12, "heads": 8, "hidden": 2048, "cuts": (), "divide": 1, "memory": 3800, "clamp": 820,
        },
        "transfo-xl-enwik8-24": {
            "vocab": 204, "layers": 24, "heads": 8, "head_width": 128, "hidden": 3072, "cuts": (), "divide": 1, "memory": 3800,
            "clamp": 820,
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        check_heads(self.width, self.heads, head_width=self.head_width)
        check_even(self.width)
        if list(self.cuts) != sorted(set(self.cuts)) or (self.cuts and not 0 < self.cuts[0] <= self.cuts[-1] < self.vocab):
            raise ValueError(
                f"cuts={list(self.cuts)} must rise and lie inside a vocabulary of {self.vocab}; give others, or none: cuts: [], divide: 1"
            )
        if self.divide > 1 and not self.cuts:
            raise ValueError(f"divide={self.divide} narrows the parts of the vocabulary, and cuts names none; give cuts, or divide: 1")

    def build(self) -> Recurrent:
        token = AdaptiveEmbedding(self.vocab, self.width, self.vectors or self.width, self.cuts, self.divide)
        embed = Embedding(token, scale=self.width**0.5, dropout=self.dropout)  # type: ignore[arg-type]
        out = AdaptiveSoftmax(token, self.cuts, self.share, self.tied, self.backwards)
        norm = partial(nn.LayerNorm, self.width, self.eps)
        kind = PreNorm if self.pre else PostNorm
        blocks = [
            kind(self._attention(), FeedForward(self.width, self.hidden, "relu", drop=self.dropout), norm, dropout=self.dropout)  # type: ignore[arg-type]
            for _ in range(self.layers)
        ]
        net = Recurrent(
            self, embed, blocks, None, LanguageHead(out), causal=True, width=self.width, memory=self.memory, same=self.same,  # type: ignore[arg-type]
            clamp=self.clamp, dropout=self.dropout, label_bias=False,
        )  # fmt: skip
        initialise(net)
        initialise_relative(net)
        if not self.untied:
            for block in blocks[1:]:
                block.attn.content, block.attn.distance = blocks[0].attn.content, blocks[0].attn.distance
        return net

    def _attention(self) -> RelativeAttention:
        return RelativeAttention(self.width, self.heads, self.head_width, self.memory, dropout=self.attention_dropout)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "TransformerXL":
        read = Reader(config)
        if read("attn_type", 0) != 0:
            raise ValueError(f"config.json asks for attn_type={read('attn_type')}, which transformer_xl here does not have; only 0 is")
        width, vectors, cuts = read("d_model"), read("d_embed", read("d_model")), tuple(read("cutoffs", (20_000, 40_000, 200_000)))
        shared = read("tie_projs", None)
        if shared is not None and (any(shared[:1]) or len(set(shared[1:])) > 1):
            raise ValueError(f"config.json asks for tie_projs={shared}; here all parts share their projection but the first, or none does")
        return cls(
            vocab=read("vocab_size"),
            width=width,
            layers=read("n_layer"),
            heads=read("n_head"),
            head_width=read("d_head"),
            hidden=read("d_inner"),
            vectors=0 if vectors == width else vectors,
            cuts=cuts,
            divide=read("div_val", 4),
            memory=read("mem_len", 1600),
            clamp=max(0, read("clamp_len", 1000)),
            same=bool(read("same_length", True)),
            pre=bool(read("pre_lnorm", False)),
            untied=bool(read("untie_r", True)),
            share=bool(read("proj_share_all_but_first", True)) if shared is None else any(shared),
            tied=bool(read("tie_word_embeddings", True)),
            backwards=bool(read("backwards", False)),
            eps=read("layer_norm_epsilon", 1e-5),
            dropout=read("dropout", 0.1),
            attention_dropout=read("dropatt", 0.0),
        )

    def fit(self, stored: set[str]) -> "TransformerXL":
        """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has."""
        return self

    def saved(self) -> "TransformerXL":
        return self

    def to_config(self) -> dict[str, Any]:
        return {
            "architectures": ["TransfoXLLMHeadModel"], "model_type": "transfo-xl", "vocab_size": self.vocab, "d_model": self.width,
            "n_layer": self.layers, "n_head": self.heads, "d_head": self.head_width, "d_inner": self.hidden,
            "d_embed": self.vectors or self.width, "cutoffs": list(self.cuts), "div_val": self.divide, "mem_len": self.memory,
            "clamp_len": self.clamp, "same_length": self.same, "pre_lnorm": self.pre, "untie_r": self.untied, "attn_type": 0,
            "proj_share_all_but_first": self.share, "tie_word_embeddings": self.tied, "layer_norm_epsilon": self.eps,
            "dropout": self.dropout, "dropatt": self.attention_dropout, "adaptive": True, "backwards": self.backwards,
        }  # fmt: skip

    def names(self, heads: dict[str, int]) -> dict[str, Name]:
        tables = len(self.cuts) + 1 if self.divide > 1 else 1
        projected = self.divide > 1 or self.vectors not in (0, self.width)
        table = {f"embed.token.tables.{i}.weight": Name(f"transformer.word_emb.emb_layers.{i}.weight") for i in range(tables)}
        if projected:
            table |= {f"embed.token.projects.{i}.weight": Name(f"transformer.word_emb.emb_projs.{i}") for i in range(tables)}
        if "lm" in heads:
            for i in range(tables):
                table[f"heads.lm.out.tables.{i}.bias"] = Name(f"crit.out_layers.{i}.bias")
                if not self.tied:
                    table[f"heads.lm.out.tables.{i}.weight"] = Name(f"crit.out_layers.{i}.weight")
            for i in range(len(self.cuts) + 1 if projected else 0):
                if i == 0 or not self.share:
                    table[f"heads.lm.out.projects.{i}.weight"] = Name(f"crit.out_projs.{i}")
            if self.cuts:
                table["heads.lm.out.clusters.weight"] = Name("crit.cluster_weight")
                table["heads.lm.out.clusters.bias"] = Name("crit.cluster_bias")
        size = self.heads * self.head_width
        for i in range(self.layers):
            ours, theirs = f"blocks.{i}.", f"transformer.layers.{i}."
            for j, role in enumerate("qkv"):  # one matrix holds all three
                table |= linear(f"{ours}attn.{role}", f"{theirs}dec_attn.qkv_net", False, rows=(j * size, (j + 1) * size))
            table |= linear(f"{ours}attn.o", f"{theirs}dec_attn.o_net", False) | linear(f"{ours}attn.r", f"{theirs}dec_attn.r_net", False)
            table |= linear(f"{ours}ffn.up", f"{theirs}pos_ff.CoreNet.0", True) | linear(
                f"{ours}ffn.down", f"{theirs}pos_ff.CoreNet.3", True
            )
            table |= linear(f"{ours}attn_norm", f"{theirs}dec_attn.layer_norm", True)
            table |= linear(f"{ours}ffn_norm", f"{theirs}pos_ff.layer_norm", True)
            table[f"{ours}attn.content"] = Name(f"{theirs}dec_attn.r_w_bias")
            table[f"{ours}attn.distance"] = Name(f"{theirs}dec_attn.r_r_bias")
        return table | label_names(heads)

    def aliases(self, name: str) -> str | None:
        """The name under which we know a stored tensor; None for what is not ours: the rates of the sinusoids, tied copies."""
        if name in ("transformer.pos_emb.inv_freq", "transformer.r_w_bias", "transformer.r_r_bias"):
            return None
        if self.tied and name.startswith("crit.out_layers.") and name.endswith(".weight"):
            return None
        if self.share and name.startswith("crit.out_projs.") and name != "crit.out_projs.0":
            return None
        return name
