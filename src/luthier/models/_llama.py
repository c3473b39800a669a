"""What LLaMA's relatives have in common: pre-norm blocks of RMSNorm, attention and a gated feed-forward; LLaMA's names in a checkpoint."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import nn

from luthier.core.attention import Attention
from luthier.core.block import PreNorm
from luthier.core.feedforward import GatedFeedForward
from luthier.core.heads import LanguageHead
from luthier.core.names import Name, linear
from luthier.core.norm import RMSNorm
from luthier.core.transformer import Embedding, Transformer, initialise

LABELS = {"classify": "score", "regress": "score", "tag": "score", "spans": "qa_outputs", "choose": "score"}
Projection = tuple[str, str, bool, tuple[int, int] | None]  # ours, theirs, whether there is a bias, rows where theirs holds several


def decoder(
    arch: Any,
    attention: Callable[[int], Attention],
    *,
    out: nn.Module | None = None,
    ffn_bias: bool = False,
    limit: int | None = None,
    **parts: Any,
) -> Transformer:
    """A net of `arch`'s vocab, width, layers, hidden, eps, act, tied and lm. attention: that of each layer; out: another matrix of the head;
    limit: the most tokens it takes; parts: rotary or relative positions.
    """
    norm = partial(RMSNorm, arch.width, arch.eps)
    blocks = [PreNorm(attention(i), GatedFeedForward(arch.width, arch.hidden, arch.act, ffn_bias), norm) for i in range(arch.layers)]
    out = nn.Linear(arch.width, arch.vocab, bias=False) if out is None else out
    embed = Embedding(nn.Embedding(arch.vocab, arch.width), limit=limit)
    if arch.tied:
        out.weight = embed.token.weight
    lm = LanguageHead(out) if arch.lm else None
    return initialise(Transformer(arch, embed, blocks, norm(), lm, causal=True, width=arch.width, label_bias=False, **parts))


def llama_names(layers: int, projections: Iterable[Projection], heads: Mapping[str, int], tied: bool) -> dict[str, Name]:
    """LLaMA's table of names; projections: of one block, below it."""
    table = {"embed.token.weight": Name("model.embed_tokens.weight"), "norm.weight": Name("model.norm.weight")}
    if "lm" in heads and not tied:
        table["heads.lm.out.weight"] = Name("lm_head.weight")
    projections = list(projections)
    for i in range(layers):
        ours, theirs = f"blocks.{i}.", f"model.layers.{i}."
        table |= {f"{ours}attn_norm.weight": Name(f"{theirs}input_layernorm.weight")}
        table |= {f"{ours}ffn_norm.weight": Name(f"{theirs}post_attention_layernorm.weight")}
        for role, path, bias, rows in projections:
            table |= linear(ours + role, theirs + path, bias, rows=rows)
    return table | label_names(heads)


def llama_projections(qkv_bias: bool, out_bias: bool, ffn_bias: bool) -> list[Projection]:
    attn: list[Projection] = [(f"attn.{role}", f"self_attn.{role}_proj", qkv_bias, None) for role in "qkv"]
    ffn: list[Projection] = [(f"ffn.{role}", f"mlp.{role}_proj", ffn_bias, None) for role in ("gate", "up", "down")]
    return [*attn, ("attn.o", "self_attn.o_proj", out_bias, None), *ffn]


def label_names(heads: Mapping[str, int]) -> dict[str, Name]:
    table: dict[str, Name] = {}
    for kind in heads.keys() & LABELS.keys():
        table |= linear(f"heads.{kind}.out", LABELS[kind], kind in ("tag", "spans"))
    return table


def llama_alias(name: str) -> str | None:
    """The name under which LLaMA's table has a stored tensor; None for buffers that old files hold."""
    if name.endswith("rotary_emb.inv_freq"):
        return None
    if name.startswith("transformer."):  # LlamaForQuestionAnswering calls its backbone so
        return "model." + name.removeprefix("transformer.")
    return name if name.startswith(("model.", "lm_head.", "score.", "qa_outputs.")) else f"model.{name}"


def headless(arch: Any, stored: set[str]) -> bool:
    """Whether a checkpoint of these tensors is a classifier's, which has no language-model head."""
    return not arch.tied and "lm_head.weight" not in stored and bool(stored & {"score.weight", "qa_outputs.weight"})


def rotary_config(arch: Any) -> dict[str, Any]:
    """What LLaMA, Mistral and Qwen 2 and 3 say alike in config.json, sizes and norms."""
    return {
        "vocab_size": arch.vocab, "hidden_size": arch.width, "num_hidden_layers": arch.layers, "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads, "intermediate_size": arch.hidden, "max_position_embeddings": arch.positions,
        "rms_norm_eps": arch.eps, "hidden_act": arch.act, "tie_word_embeddings": arch.tied, "initializer_range": 0.02,
    }  # fmt: skip
