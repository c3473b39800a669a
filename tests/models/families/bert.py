"""BERT: (our architecture, their configuration, their class) by kind."""

import transformers as hf
from families.sizes import SMALL
from mutations import late, same
from torch import nn

from luthier.models.bert import BERT

KINDS = {
    "bert": (BERT, hf.BertConfig(**SMALL), hf.BertForMaskedLM),
}

ENCODERS = ["bert"]
HEADS = [
    ("bert", "classify", 3, hf.BertForSequenceClassification),
    ("bert", "tag", 5, hf.BertForTokenClassification),
    ("bert", "spans", 2, hf.BertForQuestionAnswering),
    ("bert", "choose", 1, hf.BertForMultipleChoice),
    ("bert", "regress", 1, hf.BertForSequenceClassification),
]

DROPOUT = {"bert": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.3}}

MUTANTS = {
    "no embedding norm": (same, lambda net: setattr(net.embed, "norm", nn.Identity()), ("bert",)),
    "positions one late, bert": (same, late, ("bert",)),
    "segments forgotten": (same, lambda net: setattr(net.embed, "types", None), ("bert",)),
    "head without its transform": (same, lambda net: setattr(net.heads["lm"], "transform", nn.Identity()), ("bert",)),
}
