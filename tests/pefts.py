"""peft around the tiny models, and our nets with the same weights."""

import warnings
from pathlib import Path

import peft
from torch import nn

from kinds import build
from luthier.core.names import import_state
from luthier.models.bert import BERT
from luthier.models.bloom import Bloom
from luthier.models.gpt2 import GPT2
from luthier.models.llama import Llama


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
