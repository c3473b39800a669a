"""The vocabulary grows: new tokens start from the mean of their pieces, ties stay, and the adapter brings them along."""

import warnings
from pathlib import Path

import peft
import pytest
import torch
from tokenizers import Tokenizer as Inner
from tokenizers import models, pre_tokenizers

from kinds import build, logits, shake
from luthier.anatomy.anatomy import anatomy
from luthier.data.tokenizer import Tokenizer
from luthier.sources.foreign import wrap
from luthier.sources.model import Model
from luthier.tuning._read import load_adapter, read
from luthier.tuning._tune import tune
from luthier.tuning._vocabulary import grow

KINDS = ["our llama", "our gpt2", "our bert", "llama", "gemma2", "gpt2", "bert", "t5"]
NEW = ["<tool>", "luthier"]


def tokenizer(words: int = 99) -> Tokenizer:
    """Letters, and words that nobody writes up to the models' vocabulary."""
    vocab = {"[UNK]": 0} | {chr(ord("a") + i): 1 + i for i in range(26)} | {"<": 27, ">": 28}
    vocab |= {f"filler{i}": i for i in range(len(vocab), words)}
    inner = Inner(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return Tokenizer(inner, unk=0)


def model(kind: str) -> Model:
    net = build(kind)
    made = Model(net) if kind.startswith("our") else wrap(net)
    made.tokenizer = tokenizer()
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_new_tokens_start_from_the_mean_of_their_pieces(kind: str):
    grown = model(kind)
    embed, head = grown.anatomy.embed.weight.clone(), grown.anatomy.head.weight.clone()
    pieces = grown.tokenizer.encode("luthier")
    assert len(pieces) == 7
    tied = grown.anatomy.tied
    ids = grow(grown, [*NEW, "a"])
    assert ids == [99, 100]
    body = grown.anatomy
    torch.testing.assert_close(body.embed.weight[100], embed[pieces].mean(0))
    torch.testing.assert_close(body.head.weight[100], head[pieces].mean(0))
    torch.testing.assert_close(body.embed.weight[:99], embed)
    assert body.tied == tied
    assert grown.tokenizer.encode("<tool>") == [99]


@pytest.mark.parametrize("kind", KINDS)
def test_old_logits_stay_and_new_ids_can_be_read(kind: str):
    grown = model(kind)
    before = logits(build(kind))
    grow(grown, NEW)
    net = grown.net if kind.startswith("our") else grown.anatomy.root
    torch.testing.assert_close(logits(net)[..., :99], before, rtol=0, atol=1e-6)
    assert logits(net).shape[-1] == 101
    assert grown.net.vocab == 101


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_trains_the_new_rows_alone_and_brings_them_along(kind: str, tmp_path):
    grown = model(kind)
    attached = tune(grown, "lora", tokens=NEW, rank=2)
    rows = {name: p for name, p in attached.parameters.items() if name.endswith(".rows")}
    assert {p.shape for p in rows.values()} == {(2, 32)} and len(rows) == (1 if grown.anatomy.tied else 2)
    shake(attached.parameters)
    ids = torch.tensor([[5, 99, 7, 100]])
    extra = {"decoder_ids": ids} if kind == "t5" else {}
    want = grown.logits(ids, **extra)
    want.square().mean().backward()
    assert all((p.grad != 0).any(1).all() for p in rows.values() if p.grad is not None)
    grown.save_adapter(tmp_path)
    again = model(kind)
    load_adapter(again, tmp_path)
    torch.testing.assert_close(again.logits(ids, **extra), want, rtol=0, atol=1e-5)
    assert again.tokenizer.encode("<tool>") == [99]
    assert grown.merge() < 1e-4
    torch.testing.assert_close(grown.logits(ids, **extra), want, rtol=0, atol=1e-4)


TAKE_TOKENS = {
    "lora": {"rank": 2}, "adalora": {"rank": 4, "target": 2}, "ia3": {}, "freeze": {}, "adapter": {"width": 4}, "compacter": {"reduction": 8},
    "prefix": {"length": 3, "hidden": 4}, "p_tuning_v2": {"length": 3}, "mam": {"length": 3, "hidden": 4, "width": 4},
    "unipelt": {"length": 3, "hidden": 4, "rank": 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["our llama", "gpt2"])
@pytest.mark.parametrize("method", TAKE_TOKENS)
@pytest.mark.parametrize("trainable", [False, True])
def test_every_method_brings_its_tokens_along(kind: str, method: str, trainable: bool, tmp_path: Path):
    grown, ids = model(kind), torch.tensor([[5, 99, 7, 100]])
    shake(tune(grown, method, tokens=NEW, **TAKE_TOKENS[method]).parameters)
    grown.save_adapter(tmp_path)
    again = model(kind)
    load_adapter(again, tmp_path, trainable=trainable)
    torch.testing.assert_close(again.logits(ids), grown.logits(ids), rtol=0, atol=1e-5)
    assert again.attached.parameters.keys() == grown.attached.parameters.keys() or not trainable


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_peft_reads_added_tokens_after_resizing(kind: str, tmp_path):
    grown = model(kind)
    attached = tune(grown, "lora", tokens=NEW, rank=2)
    shake(attached.parameters)
    grown.save_adapter(tmp_path)
    ids = torch.tensor([[5, 99, 7, 100]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = build(kind)
        base.resize_token_embeddings(101, mean_resizing=False)  # type: ignore[operator]
        theirs = peft.PeftModel.from_pretrained(base, str(tmp_path)).eval()
        torch.testing.assert_close(theirs(input_ids=ids).logits, grown.logits(ids), rtol=0, atol=1e-5)
        theirs.save_pretrained(str(tmp_path / "theirs"))  # type: ignore[operator]
    again = model(kind)
    grow(again, NEW)
    read(again.anatomy, tmp_path / "theirs")
    torch.testing.assert_close(again.logits(ids), grown.logits(ids), rtol=0, atol=1e-5)


def test_also_train_embed_takes_the_new_rows_with_it(tmp_path):
    grown = model("our gpt2")
    attached = tune(grown, "lora", tokens=NEW, rank=2, also_train=["embed"])
    assert not any(name.endswith(".rows") for name in attached.parameters)
    shake(attached.parameters)
    grown.save_adapter(tmp_path)
    again = model("our gpt2")
    load_adapter(again, tmp_path)
    ids = torch.tensor([[5, 99, 7, 100]])
    torch.testing.assert_close(again.logits(ids), grown.logits(ids), rtol=0, atol=1e-5)


def test_a_second_tokenizers_tokens_are_taken(tmp_path: Path):
    other = tokenizer(30)
    other.add(["wood", "a"])
    other.save(tmp_path)
    grown = model("our llama")
    grow(grown, str(tmp_path))
    assert "wood" in grown.anatomy.grown.values()
    assert "a" not in grown.anatomy.grown.values()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [{"rank": 99}, {"roles": ["q", "x"]}])
def test_where_tuning_fails_the_vocabulary_has_not_grown(kind: str, wrong: dict):
    plain, ids = model(kind), torch.tensor([[5, 6, 7]])
    extra = {"decoder_ids": ids} if kind == "t5" else {}
    before, names = plain.logits(ids, **extra), {name: p.shape for name, p in plain.net.named_parameters()}
    assert plain.tokenizer is not None
    print_of, vocab = plain.tokenizer.fingerprint(), plain.net.vocab
    with pytest.raises(ValueError, match="rank=99|no role called 'x'"):
        tune(plain, "lora", tokens=NEW, **wrong)
    torch.testing.assert_close(plain.logits(ids, **extra), before, rtol=0, atol=0)
    assert {name: p.shape for name, p in plain.net.named_parameters()} == names
    assert (plain.tokenizer.fingerprint(), plain.net.vocab, plain.anatomy.grown) == (print_of, vocab, {})
    tune(plain, "lora", tokens=NEW, rank=2)
    assert plain.net.vocab == vocab + 2 and list(plain.anatomy.grown.values()) == NEW


def test_growing_after_tuning_the_embedding_is_refused():
    grown = model("our llama")
    tune(grown, "lora", also_train=["embed"])
    with pytest.raises(ValueError, match="before tuning"):
        grow(grown, NEW)


def test_an_adapter_with_unknown_tokens_is_refused_without_them(tmp_path):
    grown = model("our llama")
    tune(grown, "lora", tokens=NEW, rank=2)
    grown.save_adapter(tmp_path)
    with pytest.raises(ValueError, match="vocabulary ends at 98"):
        read(anatomy(build("our llama")), tmp_path)
