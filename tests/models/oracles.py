"""Tiny transformers models with random weights, and our nets with the same weights."""

from dataclasses import replace
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from luthier.core.names import export_state, import_state
from luthier.models.bert import BERT
from luthier.models.gpt2 import GPT2
from luthier.models.llama import Llama

SMALL = dict(vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, max_position_embeddings=220)
GROUPED = SMALL | dict(num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
GPT = dict(vocab_size=60, n_embd=32, n_layer=3, n_head=4, n_positions=220, bos_token_id=1, eos_token_id=2)

# kind: (our architecture, their configuration, their class)
KINDS: dict[str, tuple[Any, Any, Any]] = {
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
    "gpt2": (GPT2, hf.GPT2Config(**GPT), hf.GPT2LMHeadModel),
    "bert": (BERT, hf.BertConfig(**SMALL), hf.BertForMaskedLM),
}

# What is left in float64 at T=200 once their norms no longer cast to float32: rounding alone.
FLOOR = 1e-12


def reference(kind: str, heads: Any = None, **changes: Any) -> nn.Module:
    """Their model with random weights that reach every parameter, in the default dtype, in eval mode."""
    _, config, cls = KINDS[kind]
    config = type(config)(**(config.to_dict() | changes))
    config._attn_implementation = "sdpa"
    model = (heads or cls)(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = 1.0 if p.dim() == 1 and "weight" in name else 0.0
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2 + centre)
    return model.eval()


def ours(kind: str, model: Any, heads: dict[str, int] | None = None, **changes: Any):
    """Our net with the weights of their model; `changes` alter the architecture (mutants)."""
    cls = KINDS[kind][0]
    arch = cls.from_config(model.config.to_dict())
    stored = {arch.aliases(name): tensor for name, tensor in model.state_dict().items() if arch.aliases(name)}
    arch = replace(arch.fit(set(stored)), **changes)
    net = arch.build()
    for head, labels in (heads or {}).items():
        net.add_head(head, labels)
    names = arch.names({"lm": 0} | (heads or {})) if "lm" in net.heads else arch.names(heads or {})
    net.load_state_dict(import_state(names, stored), strict=False)
    return net.eval()


def theirs(kind: str, net: Any, like: nn.Module) -> nn.Module:
    """Their model again, with the weights of our net written under their names."""
    names = net.config.saved().names(dict.fromkeys(net.heads, 0))
    written = export_state(names, dict(net.state_dict()))
    fresh = type(like)(type(like.config)(**net.config.to_config()))
    missing, unexpected = fresh.load_state_dict(written, strict=False)
    fresh.tie_weights()
    assert not unexpected and all(
        name in ("lm_head.weight", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias") for name in missing
    )
    return fresh.eval()


def sample(batch: int = 2, length: int = 200, seed: int = 0) -> Tensor:
    return torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(seed))


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the mean size of b."""
    return ((a - b).abs().max() / b.abs().mean()).item()
