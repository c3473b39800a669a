"""Decoders with rotary positions: (our architecture, their configuration, their class) by kind."""

import transformers as hf
from families.sizes import GROUPED
from mutations import each, same, see_one_more

from luthier.core.attention import Attention
from luthier.models.llama import Llama

KINDS = {
    "llama": (Llama, hf.LlamaConfig(**GROUPED), hf.LlamaForCausalLM),
    "llama_tied": (Llama, hf.LlamaConfig(**GROUPED, tie_word_embeddings=True, attention_bias=True, mlp_bias=True), hf.LlamaForCausalLM),
    "llama_wide": (Llama, hf.LlamaConfig(**GROUPED, head_dim=12, rope_theta=5e5), hf.LlamaForCausalLM),
    "mistral": (Llama, hf.MistralConfig(**GROUPED, sliding_window=16), hf.MistralForCausalLM),
    "qwen2": (Llama, hf.Qwen2Config(**GROUPED), hf.Qwen2ForCausalLM),
    "qwen2_window": (
        Llama,
        hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=24, max_window_layers=1),
        hf.Qwen2ForCausalLM,
    ),
}

HEADS = [
    ("llama", "classify", 3, hf.LlamaForSequenceClassification),
    ("llama", "tag", 5, hf.LlamaForTokenClassification),
    ("llama", "spans", 2, hf.LlamaForQuestionAnswering),
    ("qwen2", "classify", 3, hf.Qwen2ForSequenceClassification),
]

DROPOUT = {"llama": {"attention_dropout": 0.3}}

MUTANTS = {
    "rotary base": (lambda a: {"theta": a.theta * 1.001}, None, ("llama", "llama_wide", "mistral", "qwen2")),
    "window one wider": (lambda a: {"windows": tuple(w and w + 1 for w in a.windows)}, None, ("mistral", "qwen2_window")),
    "window one narrower": (lambda a: {"windows": tuple(w and w - 1 for w in a.windows)}, None, ("mistral", "qwen2_window")),
    "window in the first layer too": (lambda a: {"windows": (24,) * a.layers}, None, ("qwen2_window",)),
    "sees one token ahead": (same, each(Attention, see_one_more), ("llama", "qwen2")),
    "head tied": (same, lambda net: setattr(net.heads["lm"].out, "weight", net.embed.token.weight), ("llama", "mistral", "qwen2")),
}
