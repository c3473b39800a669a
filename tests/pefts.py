"""peft around the tiny models, and our nets with the same weights."""

import warnings
from pathlib import Path

import peft
from torch import Tensor, nn

from kinds import build, logits, shake
from luthier.core.names import import_state
from luthier.models.bert import BERT
from luthier.models.bloom import Bloom
from luthier.models.gpt2 import GPT2
from luthier.models.llama import Llama

TARGETS = {
    "phi3": ["qkv_proj", "o_proj"], "gpt2": ["c_attn", "attn.c_proj"], "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "bloom": ["query_key_value"], "bert": ["query", "value", "attention.output.dense"], "roberta": ["query", "value"],
    "modernbert": ["Wqkv"], "t5": ["q", "v", "wo"], "opt": ["q_proj", "fc2"],
}  # fmt: skip


def saved_by_peft(kind: str, folder: Path, **settings) -> Tensor:
    """Logits of a shaken peft model, whose adapter is saved in the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(**({"r": 4, "lora_alpha": 6, "target_modules": TARGETS.get(kind, ["q_proj", "v_proj"])} | settings))
        model = peft.get_peft_model(build(kind), config).eval()
        shake({name: p for name, p in model.named_parameters() if p.requires_grad})
        model.save_pretrained(str(folder))
        return logits(model)


def with_peft(kind: str, folder: Path) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about ties, which the tests are about
        return peft.PeftModel.from_pretrained(build(kind), str(folder)).eval()


def ours_of(kind: str) -> nn.Module:
    """Our net with the weights of the transformers one."""
    module = build(kind)
    architecture = {"gpt2": GPT2, "bert": BERT, "bloom": Bloom}.get(kind, Llama)
    net = architecture.from_config(module.config.to_dict()).build()  # type: ignore[union-attr, operator]
    names = net.config.names({"lm": 99})
    pooled = {ours: name for ours, name in names.items() if not ours.startswith("pooler")}
    net.load_state_dict(import_state(pooled, module.state_dict()), strict=False)
    return net.eval()
