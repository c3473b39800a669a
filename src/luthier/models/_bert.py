"""What BERT and those after it share: parts of the encoder, fields of config.json, names of the stored tensors.

`arch` is an architecture's dataclass with BERT's fields: vocab width layers heads hidden positions segments eps act dropout
attention_dropout label_dropout lm next_sentence sentence_order pooler.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from luthier.core.attention import Attention
from luthier.core.block import Block, PostNorm
from luthier.core.feedforward import FeedForward
from luthier.core.heads import KINDS, LanguageHead, Pooler, transform
from luthier.core.names import Name, linear
from luthier.core.transformer import Embedding, Transformer, initialise
from luthier.models._config import STORED, Reader

SENTENCE = {kind for kind, reads in KINDS.items() if reads == "sentence"}
# Ours to theirs inside a block, as BERT, RoBERTa, ERNIE and ELECTRA have it.
ROLES = {
    "attn.q": "attention.self.query", "attn.k": "attention.self.key", "attn.v": "attention.self.value",
    "attn.o": "attention.output.dense", "attn_norm": "attention.output.LayerNorm", "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense", "ffn_norm": "output.LayerNorm",
}  # fmt: skip
LABELS = {"classify": "classifier", "regress": "classifier", "choose": "classifier", "tag": "classifier", "spans": "qa_outputs"}
PAIRS = {"next_sentence": "cls.seq_relationship", "sentence_order": "sop_classifier.classifier"}  # tasks of pre-training on two texts


def norm(arch: Any, width: int = 0) -> Callable[[], nn.Module]:
    return partial(nn.LayerNorm, width or arch.width, arch.eps)


def embedding(arch: Any, width: int = 0, rows: int = 0, **parts: Any) -> Embedding:
    """Token, position and segment vectors; width 0: the model's; rows 0: as many as positions."""
    width = width or arch.width
    return Embedding(
        nn.Embedding(arch.vocab, width), nn.Embedding(rows or arch.positions, width),
        nn.Embedding(arch.segments, width) if arch.segments else None, norm(arch, width)(), dropout=arch.dropout, **parts,
    )  # fmt: skip


def attention(arch: Any) -> Attention:
    return Attention(arch.width, arch.heads, dropout=arch.attention_dropout)


def feed_forward(arch: Any) -> FeedForward:
    return FeedForward(arch.width, arch.hidden, arch.act)


def post_norm_block(arch: Any, **parts: Any) -> Block:
    return PostNorm(attention(arch), feed_forward(arch), norm(arch), dropout=arch.dropout, **parts)


def post_norm_blocks(arch: Any, **parts: Any) -> list[Block]:
    return [post_norm_block(arch, **parts) for _ in range(arch.layers)]


def masked_head(embed: Embedding, before: nn.Module) -> LanguageHead:
    """out's weight is the embedding's, its bias its own."""
    out = nn.Linear(embed.token.embedding_dim, embed.token.num_embeddings)
    out.weight = embed.token.weight
    return LanguageHead(out, before)


def encoder(
    arch: Any,
    embed: Embedding,
    blocks: Sequence[Block],
    act: str = "",
    others: Mapping[str, nn.Module] | None = None,
    form: type[Transformer] = Transformer,
    **parts: Any,
) -> Transformer:
    """The net of these parts, with the heads of pre-training that the architecture says it has, and `others`.

    act: of the vocabulary's head, if another than the blocks'; form: the net's class; parts: its other arguments.
    """
    before = transform(arch.width, embed.token.embedding_dim, act or arch.act, arch.eps)
    net = form(
        arch, embed, blocks, lm=masked_head(embed, before) if arch.lm else None, causal=False, width=arch.width,
        pooler=Pooler(arch.width) if arch.pooler else None, label_dropout=arch.label_dropout, **parts,
    )  # fmt: skip
    for kind in PAIRS:
        if getattr(arch, kind):
            net.add_head(kind, 2)
    net.heads.update(others or {})
    return initialise(net)


def fit(arch: Any, stored: set[str], bias: str = "cls.predictions.bias", pooler: str = "bert.pooler.dense.weight", **others: str) -> Any:
    """The same architecture with the optional parts that a checkpoint of these tensors (canonical names) has.

    bias: of the vocabulary's head; others: field to a tensor that is there with it.
    """
    signs = {"lm": bias, "pooler": pooler} | {kind: f"{path}.weight" for kind, path in PAIRS.items()} | others
    return replace(arch, **{field: name in stored for field, name in signs.items()})


def sizes(read: Reader) -> dict[str, Any]:
    """The fields that config.json has under BERT's keys; ValueError for what it asks for and none of these models has."""
    refuse(read)
    return {
        "vocab": read("vocab_size"),
        "width": read("hidden_size"),
        "layers": read("num_hidden_layers"),
        "heads": read("num_attention_heads"),
        "hidden": read("intermediate_size"),
        "positions": read("max_position_embeddings", 512),
        "segments": read("type_vocab_size", 2),
        "eps": read("layer_norm_eps", 1e-12),
        "act": read.activation("hidden_act", "gelu"),
        "dropout": read("hidden_dropout_prob", 0.1),
        "attention_dropout": read("attention_probs_dropout_prob", 0.1),
        "label_dropout": label_dropout(read),
    }


def label_dropout(read: Reader) -> float:
    own = read("classifier_dropout", None)
    return read("hidden_dropout_prob", 0.1) if own is None else own


def refuse(read: Reader) -> None:
    kind = read("model_type", "bert")
    if read("position_embedding_type", "absolute") != "absolute" or read("is_decoder", False) or read("add_cross_attention", False):
        raise ValueError(f"config.json asks for relative positions, a decoder or cross-attention, which {kind} here does not have")
    if not read("tie_word_embeddings", True):
        raise ValueError(f"config.json asks for an untied output matrix (tie_word_embeddings: false), which {kind} here does not have")
    if read("pruned_heads", None):
        raise ValueError(f"config.json asks for pruned heads, which {kind} here does not have")


def settings(arch: Any, model_type: str, stem: str, both: str = "") -> dict[str, Any]:
    """config.json with BERT's keys; stem: what their class names begin with; both: as for class_name."""
    return {
        "architectures": [class_name(arch, stem, both)], "model_type": model_type, "vocab_size": arch.vocab, "hidden_size": arch.width,
        "num_hidden_layers": arch.layers, "num_attention_heads": arch.heads, "intermediate_size": arch.hidden,
        "max_position_embeddings": arch.positions, "type_vocab_size": arch.segments, "layer_norm_eps": arch.eps,
        "hidden_act": STORED.get(arch.act, arch.act), "hidden_dropout_prob": arch.dropout,
        "attention_probs_dropout_prob": arch.attention_dropout, "classifier_dropout": arch.label_dropout, "initializer_range": 0.02,
        "pad_token_id": 0,
    }  # fmt: skip


def class_name(arch: Any, stem: str, both: str = "") -> str:
    """transformers' class with the heads of pre-training that this architecture has. both: what stands beside "lm" in theirs for it."""
    if arch.lm:
        return stem + ("ForPreTraining" if both and getattr(arch, both) else "ForMaskedLM")
    return stem + ("ForNextSentencePrediction" if both == "next_sentence" and arch.next_sentence else "Model")


def names(arch: Any, heads: dict[str, int], body: str = "bert", own: tuple[str, ...] = ()) -> dict[str, Name]:
    """Ours to theirs for the embedding, the blocks, the pooler and the heads; body: what the names of the encoder begin with.

    own: kinds of heads that do not use the pooler.
    """
    table = embedding_names(arch, f"{body}.embeddings")
    for i in range(arch.layers):
        table |= block_names(i, ROLES, f"{body}.encoder.layer.{i}")
    if arch.pooler or heads.keys() & SENTENCE - set(own):
        table |= linear("pooler.dense", f"{body}.pooler.dense", True)
    return table | head_names(heads)


def embedding_names(arch: Any, top: str) -> dict[str, Name]:
    table = {
        "embed.token.weight": Name(f"{top}.word_embeddings.weight"),
        "embed.position.weight": Name(f"{top}.position_embeddings.weight"),
    }
    if arch.segments:
        table["embed.types.weight"] = Name(f"{top}.token_type_embeddings.weight")
    return table | linear("embed.norm", f"{top}.LayerNorm", True)


def block_names(index: int, roles: dict[str, str], top: str) -> dict[str, Name]:
    return {ours: name for role, path in roles.items() for ours, name in linear(f"blocks.{index}.{role}", f"{top}.{path}", True).items()}


def head_names(heads: dict[str, int], dense: str = "cls.predictions.transform.dense", last: str = "", bias: str = "") -> dict[str, Name]:
    """The vocabulary's head (its dense, its norm, its bias) and one Linear for each other one."""
    table: dict[str, Name] = {}
    if "lm" in heads:
        table |= linear("heads.lm.transform.0", dense, True)
        table |= linear("heads.lm.transform.2", last or "cls.predictions.transform.LayerNorm", True)
        table["heads.lm.out.bias"] = Name(bias or "cls.predictions.bias")
    for kind, path in (LABELS | PAIRS).items():
        table |= linear(f"heads.{kind}.out", path, True) if kind in heads else {}
    return table


def alias(name: str, body: str, others: tuple[str, ...] = (), forgotten: tuple[str, ...] = ()) -> str | None:
    """The name under which a stored tensor is known; None for buffers and for what begins like one of `forgotten`: copies of tied matrices.

    A name that begins neither with `body` nor like one of `others` (heads) is one of the body, saved without its prefix.
    """
    if name.endswith(("position_ids", "token_type_ids")) or name.startswith(("cls.predictions.decoder.", *forgotten)):
        return None
    for old, new in (("gamma", "weight"), ("beta", "bias")):
        stem, dot, leaf = name.rpartition(".")
        name = stem + dot + (new if leaf == old else leaf)
    return name if name.startswith((f"{body}.", "cls.", "classifier.", "qa_outputs.", "sop_classifier.", *others)) else f"{body}.{name}"
