"""float64 throughout: transformers casts to float32 inside its RMSNorm, which would hide a wrong eps under a floor of 1e-6."""

import pytest
import torch
from torch.nn import functional as F
from transformers.models.bloom import modeling_bloom
from transformers.models.glm.modeling_glm import GlmRMSNorm
from transformers.models.glm4.modeling_glm4 import Glm4RMSNorm
from transformers.models.gpt_neo import modeling_gpt_neo
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm


def _forward(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class Wide:
    """torch, in which float32 is float64: for files of models that name it."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture(autouse=True)
def float64(monkeypatch):
    for module in (modeling_bloom, modeling_gpt_neo):
        monkeypatch.setattr(module, "torch", Wide())
    # Theirs writes sqrt(2 / pi) with 8 digits.
    monkeypatch.setattr(modeling_bloom.BloomGelu, "forward", lambda self, x: F.gelu(x, approximate="tanh"))
    for norm in (GlmRMSNorm, Glm4RMSNorm, LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(norm, "forward", _forward)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
