"""Picture models joined from trained parts: a Q-Former that starts from a BERT, a MiniGPT-4 of a trained BLIP-2 and a language model.

{arch: blip2, vision: {...}, q_former: {...}, start: BERT'S SOURCE}        Li et al. 2023, arXiv:2301.12597, section 3.1
{arch: minigpt4, eyes: BLIP-2'S SOURCE, voice: LANGUAGE MODEL'S SOURCE}    Zhu et al. 2023, arXiv:2304.10592, section 3
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from luthier.core.transformer import Transformer
from luthier.models.blip2 import BLIP2, Retrieval
from luthier.models.minigpt4 import MiniGPT4
from luthier.models.q_former import QFormer, TwoBlock
from luthier.models.vit import ViT
from luthier.sources._meta import on_meta
from luthier.sources.model import Model

Load = Callable[[Any], Model]
FROM_BERT = ("width", "heads", "hidden", "positions", "eps", "act")  # what a Q-Former has to share with the BERT it starts from


def comparing(fields: dict[str, Any], tokenizer: Any, load: Load) -> Model:
    """A fresh BLIP-2; its Q-Former starts from the BERT that `start` names, fewer layers of it where it has fewer."""
    bert = None if (start := fields.pop("start", None)) is None else load(start)
    tokenizer = tokenizer or (bert and bert.tokenizer)
    vision = {"kind": "blip_2_vision_model", "eps": 1e-6, "pooler": False} | fields.get("vision", {})
    q_former: dict[str, Any] = {"text": True, "memory": ViT(**vision).width}
    if tokenizer is not None:
        q_former["vocab"] = tokenizer.vocab
    if bert is not None:
        _check_bert(bert)
        settings = vars(bert.net.config)
        q_former |= {name: settings[name] for name in (*FROM_BERT, "layers", "vocab")}
    q_former |= fields.get("q_former", {})
    net = BLIP2(**{**fields, "vision": vision, "q_former": q_former}).build()
    if bert is not None:
        begin(net, bert.net, f"start: {start}")  # type: ignore[arg-type]
    return Model(net, tokenizer, None, "fresh blip2" if bert is None else f"fresh blip2 from {start}")


@torch.no_grad()
def begin(net: Retrieval, bert: Transformer, name: str) -> None:
    """BERT's vectors and blocks as the Q-Former's; the queries' feed-forwards begin as the texts' do, what looks at pictures is new."""
    ours: QFormer = net.q_former.config
    wrong = [
        f"{key}={getattr(ours, key)} is not its {getattr(bert.config, key)}"
        for key in FROM_BERT
        if getattr(ours, key) != getattr(bert.config, key)
    ]
    if wrong or ours.layers > len(bert.blocks) or ours.vocab < bert.vocab:
        wrong = wrong or [f"layers={ours.layers} and vocab={ours.vocab}, and it has {len(bert.blocks)} and {bert.vocab}"]
        raise ValueError(f"{name} does not fit the Q-Former: {'; '.join(wrong)}; leave these out of q_former")
    embed: Any = net.q_former.embed
    embed.token.weight[: bert.vocab] = bert.embed.token.weight
    position: Any = bert.embed.position
    embed.position.weight.copy_(position.weight + (0 if bert.embed.types is None else bert.embed.types.weight[0]))
    embed.norm.load_state_dict(bert.embed.norm.state_dict())
    for block, begun in zip(net.q_former.blocks, bert.blocks, strict=False):
        assert isinstance(block, TwoBlock)
        for part, source in {
            "attn": "attn",
            "attn_norm": "attn_norm",
            "text_ffn": "ffn",
            "text_norm": "ffn_norm",
            "ffn": "ffn",
            "ffn_norm": "ffn_norm",
        }.items():
            block.get_submodule(part).load_state_dict(begun.get_submodule(source).state_dict())


def seeing(fields: dict[str, Any], load: Load) -> Model:
    """A MiniGPT-4 with trained parts and a fresh projection between them."""
    eyes, voice = (load(fields.pop(key)) if key in fields else None for key in ("eyes", "voice"))
    if (
        eyes is None
        or voice is None
        or not isinstance(eyes.net, Retrieval)
        or not isinstance(voice.net, Transformer)
        or not voice.net.causal
    ):
        raise ValueError(
            "minigpt4 of trained parts takes eyes, a blip2 (the folder of its run), and voice, a language model that writes from left to right"
        )
    if taken := fields.keys() & {"vision", "q_former", "language"}:
        raise ValueError(f"minigpt4: {', '.join(sorted(taken))} come with eyes and voice; leave them out")
    looked = {**eyes.net.config.q_former, "vocab": 0, "text": False}
    language = {"arch": type(voice.net.config).__module__.rpartition(".")[2], **vars(voice.net.config)}
    config = MiniGPT4(eyes.net.config.vision, looked, language, **fields)
    with on_meta():
        net = config.build()
    net.vision, net.language = eyes.net.vision, voice.net
    net.q_former = without_texts(eyes.net, QFormer(**looked))
    net.project = nn.Linear(config.seen, net.width)
    like = float(voice.net.embed.token.weight.detach().float().std())  # what is projected begins as large as the vectors of tokens
    nn.init.normal_(net.project.weight, std=like / config.seen**0.5)
    nn.init.zeros_(net.project.bias)
    return Model(net, voice.tokenizer, voice.template, f"minigpt4 of {eyes.source} and {voice.source}")


def without_texts(net: Retrieval, config: QFormer) -> nn.Module:
    """The Q-Former with what it looks at pictures with, and no more."""
    fresh = config.build()
    known: Mapping[str, torch.Tensor] = net.q_former.state_dict()
    fresh.load_state_dict({name: known[name] for name in fresh.state_dict()})
    return fresh


def _check_bert(model: Model) -> None:
    config = getattr(model.net, "config", None)
    if not isinstance(model.net, Transformer) or model.net.causal or not all(hasattr(config, name) for name in FROM_BERT):
        raise ValueError(f"{model.source} is no BERT, which the Q-Former could start from")
