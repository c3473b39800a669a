"""GPT-1: (our architecture, their configuration, their class) by kind."""

import transformers as hf
from families.sizes import GPT as SIZES
from mutations import each, late, same, see_one_more
from torch import nn

from luthier.core.attention import Attention
from luthier.models.gpt import GPT

KINDS = {
    "gpt": (GPT, hf.OpenAIGPTConfig(**SIZES), hf.OpenAIGPTLMHeadModel),
}

HEADS = [("gpt", "classify", 3, hf.OpenAIGPTForSequenceClassification)]

MUTANTS = {
    "positions one late, gpt": (same, late, ("gpt",)),
    "sees one token ahead, gpt": (same, each(Attention, see_one_more), ("gpt",)),
    "a norm after the last block": (same, lambda net: setattr(net, "norm", nn.LayerNorm(32)), ("gpt",)),
}

EXEMPT = {"no final norm": ["gpt"]}
