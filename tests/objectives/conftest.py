"""Tiny models of two kinds with the weights of a transformers model, their tokenizers, and streams from rows written to disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from luthier.core.names import import_state
from luthier.core.transformer import Transformer
from luthier.data.settings import Data
from luthier.data.stream import Stream, open_stream
from luthier.data.template import Template
from luthier.data.tokenizer import Tokenizer
from luthier.models.bert import BERT
from luthier.models.llama import Llama
from luthier.sources.model import Model

WORDS = [
    "the", "cat", "dog", "sat", "ran", "on", "a", "mat", "over", "he", "she", "who", "what", "where",
    "is", "was", "in", "town", "un", "##able", "##s", "##ing", "play", "我", "爱", "北", "京", "天",
    "?", ".", ",",
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def wordpiece() -> Tokenizer:
    """WordPiece with [CLS] and [SEP], as BERT's."""
    inner = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore[assignment]
    inner.add_special_tokens(SPECIAL)
    return Tokenizer(inner, pad=0, unk=1, cls=2, sep=3, mask=4)


@pytest.fixture(scope="session")
def letters() -> Tokenizer:
    """One token for each byte, and the marks of chat turns."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer(inner, bos=256, eos=257, pad=257)


@pytest.fixture
def encoder(wordpiece: Tokenizer) -> Callable[..., tuple[Model, Any]]:
    """(ours, theirs) of one BERT with a head: encoder("BertForSequenceClassification", classify=3)."""

    def build(cls: str, **heads: int) -> tuple[Model, Any]:
        import transformers

        torch.manual_seed(0)
        sizes: dict[str, Any] = {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
            "num_labels": max(heads.values(), default=2), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        }  # fmt: skip
        config = transformers.BertConfig(vocab_size=len(SPECIAL + WORDS), **sizes)
        theirs = getattr(transformers, cls)(config).double()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        stored = theirs.state_dict()
        ours = BERT(
            vocab=config.vocab_size, width=16, layers=2, heads=2, hidden=24, positions=64, dropout=0.0, attention_dropout=0.0, label_dropout=0.0,
            lm=not heads, pooler="bert.pooler.dense.weight" in stored,
        ).build()  # fmt: skip
        for kind, labels in heads.items():
            ours.add_head(kind, labels)
        _copy(ours, heads or {"lm": 0}, stored)
        return Model(ours.double(), wordpiece, source="a tiny bert"), theirs

    return build


@pytest.fixture
def decoder(letters: Tokenizer) -> Callable[..., tuple[Model, Any]]:
    """(ours, theirs) of one Llama, over bytes."""

    def build() -> tuple[Model, Any]:
        import transformers

        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=258, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
            max_position_embeddings=512,
        )  # fmt: skip
        theirs = transformers.LlamaForCausalLM(config).double()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        ours = Llama(vocab=258, width=16, layers=2, heads=4, kv_heads=2, hidden=24, positions=512).build()
        _copy(ours, {"lm": 0}, theirs.state_dict())
        return Model(ours.double(), letters, Template("chatml", CHATML), source="a tiny llama"), theirs

    return build


def _copy(net: Transformer, heads: dict[str, int], stored: dict) -> None:
    state = import_state(net.config.names(heads), stored)
    missing = set(net.state_dict()) - set(state)
    tied = {"heads.lm.out.weight"} | {name for name in missing if "pooler" in name}  # the pooler stands in each head too
    assert missing <= tied, missing
    net.load_state_dict(state, strict=False)


@pytest.fixture
def stream(tmp_path: Path) -> Callable[..., Stream]:
    """A stream over rows, through a file."""

    def build(rows: list[dict], seed: int = 0, **settings: Any) -> Stream:
        path = tmp_path / f"rows{len(list(tmp_path.iterdir()))}.jsonl"  # a new file: an earlier stream may still read the last one
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return open_stream(Data(path=str(path), **{"held_out": 0, **settings}), seed)

    return build


@pytest.fixture
def run() -> Callable[..., Any]:
    """What the training loop does with one micro-batch: the terms of the loss, as (sum / count)."""

    def forward(objective: Any, model: Model, batch: Any) -> dict[str, torch.Tensor]:
        hidden = model.net.hidden(**objective.inputs(batch))
        terms = objective.loss(hidden, model.net.heads, batch)
        assert {name: term.count for name, term in terms.items()} == batch.counts()
        return {name: term.sum / term.count for name, term in terms.items()}

    return forward
