"""BLOOM: (our architecture, their configuration, their class) by kind."""

import transformers as hf
from mutations import each, same, see_one_more, swap
from torch import nn
from torch.nn import functional as F

from luthier.core.attention import Attention
from luthier.core.feedforward import FeedForward
from luthier.core.position import ALiBi, slopes
from luthier.models.bloom import Bloom

SIZES = dict(vocab_size=60, n_layer=3, bos_token_id=1, eos_token_id=2)
KINDS = {
    "bloom": (Bloom, hf.BloomConfig(hidden_size=32, n_head=4, **SIZES), hf.BloomForCausalLM),
    "bloom_six": (Bloom, hf.BloomConfig(hidden_size=48, n_head=6, hidden_dropout=0.1, **SIZES), hf.BloomForCausalLM),
}

HEADS = [
    ("bloom", "classify", 3, hf.BloomForSequenceClassification),
    ("bloom", "tag", 5, hf.BloomForTokenClassification),
    ("bloom", "spans", 2, hf.BloomForQuestionAnswering),
]

DROPOUT = {"bloom": {"hidden_dropout": 0.2}}

BOTH = tuple(KINDS)
MUTANTS = {
    "embedding norm forgotten, bloom": (same, lambda net: setattr(net.embed, "norm", nn.Identity()), BOTH),
    "no ALiBi, bloom": (same, lambda net: setattr(net, "relative", None), BOTH),
    "slopes a little steeper, bloom": (same, each(ALiBi, lambda m: setattr(m, "slopes", [s * 1.001 for s in m.slopes])), BOTH),
    "slopes of the next power of two": (same, each(ALiBi, lambda m: setattr(m, "slopes", slopes(8)[:6])), ("bloom_six",)),
    "q and k swapped in each head": (same, each(Attention, lambda m: swap(m, "q", "k")), BOTH),
    "sees one token ahead, bloom": (same, each(Attention, see_one_more), BOTH),
    "another activation, bloom": (same, each(FeedForward, lambda m: setattr(m, "act", F.gelu)), BOTH),
}
EXEMPT = {"another activation": list(KINDS)}  # they have one only
