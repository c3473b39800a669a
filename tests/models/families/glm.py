"""GLM-4 in both of its forms: (our architecture, their configuration, their class) by kind."""

import transformers as hf
from families.sizes import GROUPED
from mutations import each, same, see_one_more
from torch import nn

from luthier.core.attention import Attention
from luthier.models.glm import GLM

GLM_SIZES = GROUPED | dict(head_dim=12)
KINDS = {
    "glm": (
        GLM,
        hf.GlmConfig(**GLM_SIZES, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        hf.GlmForCausalLM,
    ),
    "glm_plain": (GLM, hf.GlmConfig(**GROUPED | dict(head_dim=8), attention_bias=False, tie_word_embeddings=True), hf.GlmForCausalLM),
    "glm4": (GLM, hf.Glm4Config(**GLM_SIZES), hf.Glm4ForCausalLM),
}

HEADS = [
    ("glm", "classify", 3, hf.GlmForSequenceClassification),
    ("glm", "tag", 5, hf.GlmForTokenClassification),
    ("glm4", "classify", 3, hf.Glm4ForSequenceClassification),
]

GLMS = ("glm", "glm_plain", "glm4")
MUTANTS = {
    "rotary base, glm": (lambda a: {"theta": a.theta * 1.001}, None, GLMS),
    "whole heads rotary": (lambda a: {"turned": a.head_width}, None, GLMS),
    "rotary by halves": (same, lambda net: setattr(net.rotary, "interleaved", False), GLMS),
    "sees one token ahead, glm": (same, each(Attention, see_one_more), GLMS),
    "sublayers' outputs not normed": (same, lambda net: [setattr(b, "attn_out_norm", nn.Identity()) for b in net.blocks], ("glm4",)),
}
