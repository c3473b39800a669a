"""Decoders with rotary positions: (our architecture, their configuration, their class) by kind."""

from dataclasses import replace

import transformers as hf
from families.sizes import GROUPED
from mutations import each, same, see_one_more

from luthier.core.attention import Attention
from luthier.models.llama import Llama

SHORT, LONG = [1.0, 1.2, 2.0, 3.0], [1.5, 2.5, 4.0, 8.0]


def unnormed(part: Attention) -> None:
    part.q_norm = part.k_norm = None


def normed_late(part: Attention) -> None:
    q_norm, k_norm, plain = part.q_norm, part.k_norm, part.attend
    assert q_norm is not None and k_norm is not None
    unnormed(part)
    part.attend = lambda q, k, *rest: plain(q_norm(q), k_norm(k), *rest)


def scaled(**rope) -> hf.LlamaConfig:
    return hf.LlamaConfig(**GROUPED | rope.pop("more", {}), rope_parameters={"rope_theta": 1e3} | rope)


YARN = dict(rope_type="yarn", more={"head_dim": 24})
KINDS = {
    "llama": (Llama, hf.LlamaConfig(**GROUPED), hf.LlamaForCausalLM),
    "llama_tied": (Llama, hf.LlamaConfig(**GROUPED, tie_word_embeddings=True, attention_bias=True, mlp_bias=True), hf.LlamaForCausalLM),
    "llama_wide": (Llama, hf.LlamaConfig(**GROUPED, head_dim=12, rope_theta=5e5), hf.LlamaForCausalLM),
    "llama_linear": (Llama, scaled(rope_type="linear", factor=4.0), hf.LlamaForCausalLM),
    "llama_dynamic": (Llama, scaled(rope_type="dynamic", factor=2.0, more={"max_position_embeddings": 100}), hf.LlamaForCausalLM),
    "llama_yarn": (Llama, scaled(**YARN, factor=4.0, original_max_position_embeddings=150), hf.LlamaForCausalLM),
    "llama_yarn_mscale": (
        Llama,
        scaled(
            **YARN,
            factor=3.0,
            original_max_position_embeddings=55,
            beta_fast=4.0,
            beta_slow=0.5,
            mscale=0.7,
            mscale_all_dim=0.3,
            truncate=False,
        ),
        hf.LlamaForCausalLM,
    ),
    "llama_three": (
        Llama,
        scaled(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=50),
        hf.LlamaForCausalLM,
    ),
    "llama_longrope": (
        Llama,
        scaled(rope_type="longrope", factor=2.0, original_max_position_embeddings=110, short_factor=SHORT, long_factor=LONG),
        hf.LlamaForCausalLM,
    ),
    "qwen3": (Llama, hf.Qwen3Config(**GROUPED, head_dim=12), hf.Qwen3ForCausalLM),
    "qwen3_bias": (
        Llama,
        hf.Qwen3Config(**GROUPED, head_dim=8, attention_bias=True, use_sliding_window=True, sliding_window=24, max_window_layers=2),
        hf.Qwen3ForCausalLM,
    ),
    "mistral": (Llama, hf.MistralConfig(**GROUPED, sliding_window=16), hf.MistralForCausalLM),
    "qwen2": (Llama, hf.Qwen2Config(**GROUPED), hf.Qwen2ForCausalLM),
    "qwen2_window": (
        Llama,
        hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=24, max_window_layers=1),
        hf.Qwen2ForCausalLM,
    ),
}

SCALED = [kind for kind, (_, config, _) in KINDS.items() if config.rope_parameters["rope_type"] != "default"]
HEADS = [
    ("llama", "classify", 3, hf.LlamaForSequenceClassification),
    ("llama", "tag", 5, hf.LlamaForTokenClassification),
    ("llama", "spans", 2, hf.LlamaForQuestionAnswering),
    ("qwen2", "classify", 3, hf.Qwen2ForSequenceClassification),
]

DROPOUT = {key: {"attention_dropout": 0.3} for key in ("llama", "mistral", "qwen2", "qwen3")}


def scale(**changes):
    """Of the scaling itself: each value times its number, or the number in its place where it was 0."""
    return lambda a: {"scaling": replace(a.scaling, **{key: getattr(a.scaling, key) * by or by for key, by in changes.items()})}


MUTANTS = {
    "norms of q and k forgotten": (same, each(Attention, unnormed), ("qwen3", "qwen3_bias")),
    "norm of k is that of q": (same, each(Attention, lambda m: setattr(m, "k_norm", m.q_norm)), ("qwen3", "qwen3_bias")),
    "q and k normed behind the rotation": (same, each(Attention, normed_late), ("qwen3",)),
    "rotary scaling forgotten": (lambda a: {"scaling": None}, None, SCALED),
    "scale factor": (scale(factor=1.001), None, [kind for kind in SCALED if kind != "llama_longrope"]),
    "trained length": (scale(trained=0.5), None, ("llama_dynamic", "llama_yarn", "llama_yarn_mscale", "llama_three")),
    "ramp of yarn": (scale(fast=0.5, slow=0.5), None, ("llama_yarn", "llama_yarn_mscale")),
    "rounding of yarn's ramp": (lambda a: {"scaling": replace(a.scaling, whole=not a.scaling.whole)}, None, ("llama_yarn_mscale",)),
    "attention of yarn": (scale(attention=1.001), None, ("llama_yarn", "llama_yarn_mscale", "llama_longrope")),
    "ramp of llama3": (scale(high=1.1), None, ("llama_three",)),
    "short factors for long texts": (lambda a: {"scaling": replace(a.scaling, long=a.scaling.short)}, None, ("llama_longrope",)),
    "rotary base": (lambda a: {"theta": a.theta * 1.001}, None, ("llama", "llama_wide", "mistral", "qwen2")),
    "window one wider": (lambda a: {"windows": tuple(w and w + 1 for w in a.windows)}, None, ("mistral", "qwen2_window")),
    "window one narrower": (lambda a: {"windows": tuple(w and w - 1 for w in a.windows)}, None, ("mistral", "qwen2_window")),
    "window in the first layer too": (lambda a: {"windows": (24,) * a.layers}, None, ("qwen2_window",)),
    "sees one token ahead": (same, each(Attention, see_one_more), ("llama", "qwen2")),
    "head tied": (same, lambda net: setattr(net.heads["lm"].out, "weight", net.embed.token.weight), ("llama", "mistral", "qwen2")),
}
