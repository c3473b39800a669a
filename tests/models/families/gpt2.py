"""GPT-2: (our architecture, their configuration, their class) by kind."""

import transformers as hf
from families.sizes import GPT
from mutations import each, late, same, see_one_more

from luthier.core.attention import Attention
from luthier.models.gpt2 import GPT2

KINDS = {
    "gpt2": (GPT2, hf.GPT2Config(**GPT), hf.GPT2LMHeadModel),
}

HEADS = [
    ("gpt2", "classify", 3, hf.GPT2ForSequenceClassification),
    ("gpt2", "tag", 5, hf.GPT2ForTokenClassification),
    ("gpt2", "spans", 2, hf.GPT2ForQuestionAnswering),
]

DROPOUT = {"gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.2, "attn_pdrop": 0.3}}

MUTANTS = {
    "positions one late, gpt2": (same, late, ("gpt2",)),
    "sees one token ahead, gpt2": (same, each(Attention, see_one_more), ("gpt2",)),
}
