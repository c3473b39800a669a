"""Tiny models of many kinds, transformers' and ours, for tests that hold for all of them. Fixed weights; 99 tokens, width 32, 2 layers."""

import copy
import inspect
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from luthier.core.encoder_decoder import EncoderDecoder
from luthier.models.albert import ALBERT
from luthier.models.baichuan import Baichuan
from luthier.models.bert import BERT
from luthier.models.bloom import Bloom
from luthier.models.chatglm import ChatGLM
from luthier.models.distilbert import DistilBERT
from luthier.models.electra import ELECTRA
from luthier.models.ernie import ERNIE
from luthier.models.glm import GLM
from luthier.models.gpt import GPT
from luthier.models.gpt2 import GPT2
from luthier.models.gpt3 import GPT3
from luthier.models.llama import Llama
from luthier.models.qwen import Qwen
from luthier.models.roberta import RoBERTa
from luthier.models.t5 import T5
from luthier.models.transformer import Vaswani
from luthier.models.transformer_xl import TransformerXL
from luthier.models.unilm import UniLM
from luthier.models.xlnet import XLNet

SMALL = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GQA = SMALL | IDS | {"num_key_value_heads": 2}
THEIRS = {
    "llama": GQA,
    "mistral": GQA,
    "qwen2": GQA,
    "qwen3": GQA | {"head_dim": 8},
    "gemma": GQA | {"head_dim": 8},
    "gemma2": GQA | {"head_dim": 8},
    "phi3": GQA,
    "glm4": GQA | {"head_dim": 8},
    "gpt2": IDS | {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48},
    "gpt_neox": SMALL | IDS,
    "bloom": IDS | {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "opt": SMALL | IDS | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mixtral": GQA | {"num_local_experts": 2},
    "bert": SMALL,
    "roberta": SMALL,
    "modernbert": SMALL | IDS | {"cls_token_id": 1, "sep_token_id": 2},
    "t5": {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "bart": {
        "vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
    },
}  # fmt: skip
ENCODERS, PAIRS = ("bert", "roberta", "modernbert"), ("t5", "bart")
OURS = {
    "our llama": Llama(vocab=99, width=32, layers=2, heads=4, kv_heads=2, hidden=48),
    "our qwen3": Llama(vocab=99, width=32, layers=2, heads=4, kv_heads=2, hidden=48, head_width=12, kind="qwen3"),
    "our baichuan": Baichuan(vocab=99, width=32, layers=2, heads=4, hidden=48, alibi=True, norm_head=True),
    "our bloom": Bloom(vocab=99, width=32, layers=2, heads=4),
    "our gpt2": GPT2(vocab=99, width=32, layers=2, heads=4, hidden=48),
    "our bert": BERT(vocab=99, width=32, layers=2, heads=4, hidden=48),
    "our albert": ALBERT(vocab=99, embed_width=16, width=32, layers=4, groups=2, heads=4, hidden=48),
    "our albert that shares attention": ALBERT(vocab=99, embed_width=16, width=32, layers=2, heads=4, hidden=48, share="attention"),
    "our roberta": RoBERTa(vocab=99, width=32, layers=2, heads=4, hidden=48),
    "our t5": T5(vocab=99, width=32, layers=2, heads=4, head_width=8, hidden=48),
    "our transformer": Vaswani(vocab=99, width=32, layers=2, decoder_layers=2, heads=4, hidden=48, positions=64),
    "our transformer-xl": TransformerXL(vocab=99, width=32, layers=2, heads=4, head_width=8, hidden=48, cuts=(30, 60), divide=2, memory=64),
    "our xlnet": XLNet(vocab=99, width=32, layers=2, heads=4, hidden=48),
    "our gpt": GPT(vocab=99, width=32, layers=2, heads=4),
    "our gpt3": GPT3(vocab=99, width=32, layers=2, heads=4, hidden=48, windows=(0, 3)),
    "our qwen": Qwen(vocab=99, width=32, layers=2, heads=4, hidden=48),
    "our glm4": GLM(vocab=99, width=32, layers=2, heads=4, kv_heads=2, hidden=48, head_width=8, turned=4, kind="glm4"),
    "our chatglm": ChatGLM(vocab=99, width=32, layers=2, heads=4, hidden=48, start=2, blanks=(0, 1)),
    "our distilbert": DistilBERT(vocab=99, width=32, layers=2, heads=4, hidden=48),
    "our electra": ELECTRA(vocab=99, embed_width=16, width=32, layers=2, heads=4, hidden=48, lm=True, replaced=False),
    "our ernie": ERNIE(vocab=99, width=32, layers=2, heads=4, hidden=48, tasks=3),
    "our unilm": UniLM(vocab=99, width=32, layers=2, heads=4, hidden=48),
}
KINDS = [*THEIRS, *OURS]
LESS = (
    "mistral",
    "qwen2",
    "qwen3",
    "glm4",
    "bloom",
    "opt",
    "roberta",
    "modernbert",
    "bart",
    "our albert",
    "our roberta",
    "our qwen3",
    "our baichuan",
    "our bloom",
)  # what they add is in the long run
kinds = pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.slow if kind in LESS else ()) for kind in KINDS])
NO_BIAS = ("llama", "mistral", "qwen3", "gemma", "gemma2", "phi3", "mixtral", "t5", "our llama", "our qwen3", "our baichuan", "our t5")


@lru_cache
def _made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind in OURS:
        net: nn.Module = OURS[kind].build()
    else:
        auto = AutoModelForSeq2SeqLM if kind in PAIRS else AutoModelForMaskedLM if kind in ENCODERS else AutoModelForCausalLM
        net = auto.from_config(CONFIG_MAPPING[kind](**THEIRS[kind]))
    with torch.no_grad():  # biases that are not 0, weights large enough for every part to show in the logits
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


@lru_cache
def _wide(kind: str, dtype: torch.dtype) -> nn.Module:
    net = copy.deepcopy(_made(kind)).to(dtype)
    if kind == "mixtral":
        net.set_experts_implementation("eager")  # type: ignore[operator]  # the other has no float64
    return net


def build(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A fresh copy, always with the same weights."""
    return copy.deepcopy(_made(kind) if dtype == torch.float32 else _wide(kind, dtype))


def without_dropout(net: nn.Module) -> nn.Module:
    """Rates set to zero, so that a model in training says what it says in evaluation."""
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        rates = [name for name, value in vars(module).items() if "dropout" in name and isinstance(value, float)]
        module.__dict__.update(dict.fromkeys(rates, 0.0))
    return net


def tokens() -> Tensor:
    """(2, 8) ids."""
    return torch.randint(3, 99, (2, 8), generator=torch.Generator().manual_seed(1))


def logits(net: nn.Module, ids: Tensor | None = None, mask: Tensor | None = None, decoder_ids: Tensor | None = None) -> Tensor:
    """(2, 8, vocab), or of other ids with padding on either side; an encoder-decoder writes what it reads, or decoder_ids."""
    ids = tokens() if ids is None else ids
    decoder_ids = ids if decoder_ids is None else decoder_ids
    if type(net).__module__.startswith("luthier"):
        return net(ids, mask, decoder_ids=decoder_ids) if isinstance(net, EncoderDecoder) else net(ids, mask)
    module = net.get_base_model() if type(net).__module__.startswith("peft") else net  # type: ignore[operator]
    extra: dict[str, Tensor] = {} if mask is None else {"attention_mask": mask.long()}
    if module.config.is_encoder_decoder:  # type: ignore[union-attr]
        extra["decoder_input_ids"] = decoder_ids
    elif mask is not None and "position_ids" in inspect.signature(module.base_model.forward).parameters:  # type: ignore[union-attr, arg-type]
        first = module.config.pad_token_id + 1 if module.config.model_type == "roberta" else 0  # type: ignore[union-attr, operator]
        extra["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0) + first
    return net(input_ids=ids, **extra).logits


def shake(parameters: dict[str, nn.Parameter], size: float = 0.1) -> None:
    """Noise on everything trainable: a zero B hides A's gradient, and a method that does nothing hides its mistakes."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(size * torch.randn_like(parameter))


def check_padding_and_packing(net: nn.Module) -> None:
    """A short text gives the same states with padding on either side, whatever token it is, and packed with another."""
    ids = tokens()[:1]
    alone = [net.hidden(ids[:, :5]), net.hidden(ids)]
    for pad, left in ((0, True), (0, False), (7, True)):
        filler = torch.full((1, 3), pad)
        rows = torch.cat([torch.cat([filler, ids[:, :5]] if left else [ids[:, :5], filler], 1), ids])
        mask = torch.ones(2, 8, dtype=torch.bool)
        mask[0, slice(0, 3) if left else slice(5, 8)] = False
        got = net.hidden(rows, mask)
        torch.testing.assert_close(got[0][mask[0]], alone[0][0], rtol=0, atol=2e-5)
        torch.testing.assert_close(got[1], alone[1][0], rtol=0, atol=2e-5)
    packed = net.hidden(torch.cat([ids[:, :5], ids], 1), lengths=(5, 8))
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=2e-5)


def greedy(net: nn.Module, prompt: list[int], new: int) -> list[int]:
    """The likeliest next tokens of one of our nets, each from a whole pass without a cache."""
    pair = isinstance(net, EncoderDecoder)
    text = [net.start] if pair else list(prompt)
    for _ in range(new):
        step = net(torch.tensor([prompt]), decoder_ids=torch.tensor([text])) if pair else net(torch.tensor([text]))
        text.append(int(step[0, -1].argmax()))
    return text[-new:]
