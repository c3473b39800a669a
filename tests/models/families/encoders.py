"""BERT's descendants: (our architecture, their configuration, their class) by kind."""

import transformers as hf
from families.sizes import SMALL
from mutations import late, same
from torch import nn

from luthier.models.albert import ALBERT
from luthier.models.distilbert import DistilBERT
from luthier.models.electra import ELECTRA
from luthier.models.ernie import ERNIE
from luthier.models.roberta import RoBERTa
from luthier.models.spanbert import SpanBERT
from luthier.models.unilm import UniLM

DISTIL = dict(vocab_size=60, dim=32, n_layers=3, n_heads=4, hidden_dim=64, max_position_embeddings=220)
FACTORISED = SMALL | dict(embedding_size=16)

KINDS = {
    "roberta": (RoBERTa, hf.RobertaConfig(**SMALL, type_vocab_size=1, layer_norm_eps=1e-5), hf.RobertaForMaskedLM),
    "albert": (ALBERT, hf.AlbertConfig(**FACTORISED, hidden_dropout_prob=0.1), hf.AlbertForMaskedLM),
    "albert_groups": (
        ALBERT,
        hf.AlbertConfig(**FACTORISED, num_hidden_groups=2, inner_group_num=2, hidden_dropout_prob=0.1),
        hf.AlbertForMaskedLM,
    ),
    "distilbert": (DistilBERT, hf.DistilBertConfig(**DISTIL), hf.DistilBertForMaskedLM),
    "ernie": (ERNIE, hf.ErnieConfig(**SMALL, hidden_act="relu", layer_norm_eps=1e-5), hf.ErnieForMaskedLM),
    "ernie_tasks": (ERNIE, hf.ErnieConfig(**SMALL, use_task_id=True, type_vocab_size=4), hf.ErnieForMaskedLM),
    "electra": (ELECTRA, hf.ElectraConfig(**FACTORISED), hf.ElectraForMaskedLM),
    "spanbert": (SpanBERT, hf.BertConfig(**SMALL), hf.BertForMaskedLM),
    "unilm": (UniLM, hf.BertConfig(**SMALL, type_vocab_size=6), hf.BertForMaskedLM),
}
ENCODERS = list(KINDS)

CLASSES = {"roberta": "Roberta", "albert": "Albert", "distilbert": "DistilBert", "ernie_tasks": "Ernie", "electra": "Electra"}
TASKS = {
    "classify": (3, "ForSequenceClassification"),
    "tag": (5, "ForTokenClassification"),
    "spans": (2, "ForQuestionAnswering"),
    "choose": (1, "ForMultipleChoice"),
    "regress": (1, "ForSequenceClassification"),
}
HEADS = [(kind, head, labels, getattr(hf, stem + end)) for kind, stem in CLASSES.items() for head, (labels, end) in TASKS.items()]


def coarser_head(net) -> None:
    net.heads["lm"].transform[2].eps *= 10


RATES = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.3}
DROPOUT = dict.fromkeys(("roberta", "ernie", "ernie_tasks", "electra", "spanbert", "unilm"), RATES)
DROPOUT |= {"distilbert": {"dropout": 0.1, "attention_dropout": 0.3}}

FACTOR = ("albert", "albert_groups", "electra")
MUTANTS = {
    "positions from the padding's row": (same, lambda net: setattr(net.embed, "pad", net.embed.pad - 1), ("roberta",)),
    "positions one late, encoders": (same, late, tuple(kind for kind in KINDS if kind != "roberta")),
    "segments forgotten, encoders": (
        same, lambda net: setattr(net.embed, "types", None), tuple(kind for kind in KINDS if kind != "distilbert"),
    ),
    "tasks forgotten": (same, lambda net: setattr(net.embed, "tasks", None), ("ernie_tasks",)),
    "no embedding norm, encoders": (same, lambda net: setattr(net.embed, "norm", nn.Identity()), tuple(KINDS)),
    "projection without its bias": (same, lambda net: nn.init.zeros_(net.embed.project.bias), FACTOR),
    "norm behind the projection": (
        same,
        lambda net: (setattr(net.embed, "project", nn.Sequential(net.embed.norm, net.embed.project, nn.LayerNorm(32)))),
        FACTOR,
    ),
    "head without its transform, encoders": (same, lambda net: setattr(net.heads["lm"], "transform", nn.Identity()), (
        "roberta", "distilbert", "ernie", "spanbert", "unilm",
    )),
    "head without its norm, encoders": (same, lambda net: net.heads["lm"].transform.__delitem__(2), tuple(KINDS)),
    "head with eps ten times larger": (same, coarser_head, tuple(KINDS)),
    "head without its bias, encoders": (same, lambda net: nn.init.zeros_(net.heads["lm"].out.bias), tuple(KINDS)),
    "one layer fewer, encoders": (same, lambda net: setattr(net, "order", net.order[:-1]), tuple(KINDS)),
    "groups one layer later": (same, lambda net: setattr(net, "order", (0, 1, 0, 1, 0, 1)), ("albert_groups",)),
    "inner blocks the other way round": (same, lambda net: setattr(net, "order", (1, 0, 1, 0, 3, 2)), ("albert_groups",)),
}  # fmt: skip
