"""GPT-Neo, the form of GPT-3 that has weights: (our architecture, their configuration, their class) by kind."""

import transformers as hf
from mutations import each, late, same, see_one_more

from luthier.core.attention import Attention
from luthier.models.gpt3 import GPT3

SIZES = dict(vocab_size=60, hidden_size=32, num_layers=3, num_heads=4, max_position_embeddings=220, bos_token_id=1, eos_token_id=2)
TYPES = [[["global", "local"], 1], [["local"], 1]]
KINDS = {
    "gpt_neo": (GPT3, hf.GPTNeoConfig(**SIZES, attention_types=TYPES, window_size=24), hf.GPTNeoForCausalLM),
}

HEADS = [
    ("gpt_neo", "classify", 3, hf.GPTNeoForSequenceClassification),
    ("gpt_neo", "tag", 5, hf.GPTNeoForTokenClassification),
    ("gpt_neo", "spans", 2, hf.GPTNeoForQuestionAnswering),
]

MUTANTS = {
    "positions one late, gpt_neo": (same, late, ("gpt_neo",)),
    "sees one token ahead, gpt_neo": (same, each(Attention, see_one_more), ("gpt_neo",)),
    "band one wider": (lambda a: {"windows": tuple(w and w + 1 for w in a.windows)}, None, ("gpt_neo",)),
    "band one narrower": (lambda a: {"windows": tuple(w and w - 1 for w in a.windows)}, None, ("gpt_neo",)),
    "dense and banded layers the other way round": (lambda a: {"windows": (24, 0, 0)}, None, ("gpt_neo",)),
    "scores scaled": (lambda a: {"scaled": True}, None, ("gpt_neo",)),
}
