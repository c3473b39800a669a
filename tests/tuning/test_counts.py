"""Published parameter counts that no other test of this folder names: whole models, GPT-3's LoRA, T5's prompts, MAD-X on XLM-R."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from luthier.anatomy.anatomy import anatomy
from luthier.tuning._tune import attach, made

ROBERTA = {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
GPT3 = {"n_embd": 12_288, "n_layer": 96, "n_head": 96, "vocab_size": 8}
PFEIFFER = {"kind": "adapter", "after": ["ffn"], "reads": "sum", "reduction": 16, "act": "relu", "norms": False}
COUNTS: list[tuple[str, dict[str, Any], list[dict[str, Any]], int]] = [
    ("roberta", ROBERTA, [{"kind": "full"}], 124_645_632),
    ("roberta", ROBERTA | LARGE, [{"kind": "full"}], 355_359_744),
    ("gpt2", GPT3, [{"kind": "lora", "rank": 1}], 4_718_592),
    ("gpt2", GPT3, [{"kind": "lora", "rank": 8}], 37_748_736),
    ("t5", {"d_model": 768, "num_layers": 1}, [{"kind": "prompt", "length": 100}], 76_800),
    ("t5", {"d_model": 2048, "num_layers": 1}, [{"kind": "prompt", "length": 100}], 204_800),
    ("t5", {"d_model": 4096, "num_layers": 1}, [{"kind": "prompt", "length": 100}], 409_600),
    ("xlm-roberta", ROBERTA, [{"kind": "mad_x"}, PFEIFFER], 8_282_304),  # language, its invertible adapter, task
]


@pytest.mark.parametrize("kind, sizes, methods, count", COUNTS, ids=[f"{case[0]}-{case[3]}" for case in COUNTS])
def test_it_is_the_published_one(kind: str, sizes: dict[str, Any], methods: list[dict[str, Any]], count: int):
    with torch.device("meta"):
        net = AutoModel.from_config(AutoConfig.for_model(kind, **sizes))
        body = anatomy(net)
        attached = [attach(body, made(method, {}), f"method{i}") for i, method in enumerate(methods)]
    assert sum(p.numel() for each in attached for p in each.parameters.values()) == count
