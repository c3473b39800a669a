"""Ids equal transformers' (tokenizer.json, vocab.txt) and sentencepiece's (tokenizer.model); saved directories load in transformers."""

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken, pre_tokenizers, processors

from bytebpe import TEXTS, roberta_like
from luthier.data.tokenizer import Tokenizer, touching
from luthier.data.words import cut
from luthier.sources.open import open_checkpoint
from tiny import minilm_path, smollm2_path

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    tokenizer = open_checkpoint(smollm2_path()).tokenizer
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def minilm() -> Tokenizer:
    return Tokenizer.from_directory(minilm_path())


def test_minilm_ids_are_those_of_transformers(minilm):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(minilm_path())
    for text in TEXTS:
        assert minilm.encode(text) == theirs.encode(text, add_special_tokens=False), text
        assert minilm.encode(text, specials=True) == theirs.encode(text), text
    assert minilm.encode_batch(TEXTS) == [minilm.encode(text) for text in TEXTS]
    assert (minilm.cls, minilm.sep, minilm.pad, minilm.mask, minilm.bos) == (101, 102, 0, 103, None)
    assert minilm.vocab == len(theirs)


@pytest.mark.parametrize("length", [6, 9, 16, 17, 200])
def test_pairs_are_cut_and_joined_as_transformers_does(minilm, length):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(minilm_path())
    texts = [text for text in TEXTS if text.strip()]
    for first, second in zip(texts, texts[::-1], strict=True):
        expected = theirs(first, second, truncation=True, max_length=length)
        assert minilm.pair(first, second, length) == (expected["input_ids"], expected["token_type_ids"]), (first, second)
        expected = theirs(first, truncation=True, max_length=length)
        assert minilm.pair(first, None, length) == (expected["input_ids"], expected["token_type_ids"])


def test_a_bare_vocab_txt_gives_the_same_ids(minilm, tmp_path):
    shutil.copy(minilm_path() / "vocab.txt", tmp_path)
    bare = Tokenizer.from_directory(tmp_path)
    assert [bare.encode(text, specials=True) for text in TEXTS] == [minilm.encode(text, specials=True) for text in TEXTS]
    assert bare.named() == minilm.named()


@pytest.mark.parametrize("which", ["minilm", "smollm2"])
def test_a_saved_directory_loads_in_transformers_with_equal_ids(which, request, tmp_path):
    from transformers import AutoTokenizer

    ours: Tokenizer = request.getfixturevalue(which)
    ours.save(tmp_path)
    theirs, again = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_directory(tmp_path)
    for text in TEXTS:
        assert theirs.encode(text) == ours.encode(text, specials=True) == again.encode(text, specials=True), text
        ids = ours.encode(text)
        assert theirs.decode(ids) == ours.decode(ids, specials=True)
    assert {key: theirs.special_tokens_map[key] for key in ours.named()} == ours.named() == again.named()
    assert theirs.chat_template == ours.chat_template == again.chat_template
    assert again.fingerprint() == ours.fingerprint()


def test_smollm2_ids_are_those_transformers_makes_of_the_same_gguf(smollm2):
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate only")
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(smollm2_path().parent), gguf_file=smollm2_path().name)
    for text in TEXTS:
        assert smollm2.encode(text) == theirs.encode(text, add_special_tokens=False), text


def test_remembered_words_give_the_ids_of_the_library(smollm2):
    assert smollm2._words is not None, "the quick way does not fit SmolLM2"
    parts = [
        " ",
        "  ",
        "\n",
        "\t",
        "a",
        "foo",
        "Bar",
        "12",
        "é",
        "中",
        "文字",
        "🎉",
        "'ll",
        "...",
        "<|im_end|>",
        "\r\n",
        "\u00a0",
        "\u3000",
        "\x1c",
        "e\u0301",
    ]
    chance = random.Random(0)
    texts = ["".join(chance.choice(parts) for _ in range(chance.randrange(12))) for _ in range(4000)]
    expected = [code.ids for code in smollm2.inner.encode_batch(texts, add_special_tokens=False)]
    assert [smollm2.encode_batch([text])[0] for text in texts] == expected  # remembered on the way
    assert smollm2.encode_batch(texts) == expected


def test_texts_are_cut_at_single_spaces_between_other_characters():
    chance = random.Random(2)
    for _ in range(2000):
        text = "".join(chance.choice([" ", " ", "a", "bc", "\n", "\u3000", "\x1c"]) for _ in range(chance.randrange(10)))
        assert cut(text) == re.split(r"(?<=\S)(?= \S)", text)


def test_tokenizers_that_swallow_spaces_are_not_cut_into_words():
    inner = roberta_like()
    assert Tokenizer(inner)._words is not None
    inner.add_tokens([AddedToken("<end>", rstrip=True)])
    assert Tokenizer(inner)._words is None
    inner = roberta_like()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # type: ignore[assignment]
    assert Tokenizer(inner)._words is None


def test_added_tokens_are_seen_after_words_were_remembered():
    tokenizer = Tokenizer(roberta_like())
    before = tokenizer.encode_batch(["say <tool> now", "say <tool> now"])
    assert tokenizer.add(["<tool>"]) == 1 and tokenizer.add(["<tool>"]) == 0
    after = tokenizer.encode_batch(["say <tool> now"])[0]
    assert after != before[0] and tokenizer.id("<tool>") in after and tokenizer.vocab == 501


def test_tokens_that_touch_a_range_are_found_alike_by_bytes_and_by_offsets(smollm2):
    chance = random.Random(1)
    for text in TEXTS:
        code = smollm2.inner.encode(text, add_special_tokens=False)
        edges = sorted(chance.sample(range(len(text) + 1), min(4, len(text) + 1)))
        ranges = list(zip(edges[::2], edges[1::2], strict=False))
        ((ids, found),) = smollm2.encode_spans([text], [ranges])
        assert ids == code.ids and found == touching(code.offsets, ranges), (text, ranges)


def test_a_token_of_spaces_whose_offsets_were_trimmed_belongs_to_the_range_it_ends_in():
    offsets = [(0, 3), (5, 5), (6, 9)]  # "foo", two line feeds trimmed to nothing, " bar" without its space
    assert touching(offsets, [(0, 5)]) == [(0, 2)]
    assert touching(offsets, [(5, 9)]) == [(2, 3)]
    assert touching(offsets, [(3, 5), (5, 9)]) == [(1, 2), (2, 3)]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("fallback", [True, False])
def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(kind, fallback, tmp_path):
    import sentencepiece

    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 8) + "\nTo be, or not to be: that is the question.\n" * 30, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
        input=str(tmp_path / "text.txt"), model_prefix=str(tmp_path / "tokenizer"), vocab_size=600 if fallback else 330, model_type=kind, hard_vocab_limit=False,
        byte_fallback=fallback, character_coverage=0.995, remove_extra_whitespaces=not fallback, minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))  # type: ignore[call-arg]
    ours = Tokenizer.from_directory(tmp_path)
    for text in [*TEXTS, "To be, or not", " leading", "½ Ａ"]:
        if "\x00" not in text and "aaa" not in text:  # a run of one letter has several segmentations of equal score
            assert ours.encode(text) == theirs.encode(text), text  # type: ignore[attr-defined]
    assert (ours.bos, ours.eos, ours.unk) == (theirs.bos_id(), theirs.eos_id(), theirs.unk_id())
    assert ours.decode(ours.encode("To be, or not")) == "To be, or not"


def test_a_tokenizer_made_to_add_bos_says_so_and_keeps_it_when_saved(tmp_path):
    from transformers import AutoTokenizer

    plain = Tokenizer(roberta_like())
    plain.inner.post_processor = processors.ByteLevel()  # type: ignore[assignment]
    ours = Tokenizer(plain.inner, bos=0, eos=1, adds_bos=True)
    assert ours.adds_bos and ours.encode("Hello", specials=True)[0] == 0 and ours.encode("Hello")[0] != 0
    ours.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode("Hello") == ours.encode("Hello", specials=True)
    assert Tokenizer.from_directory(tmp_path).adds_bos


def test_a_decoders_pair_ends_with_eos_within_the_length(smollm2):
    ids, types = smollm2.pair("first text of some length", "second one", length=9)
    assert len(ids) == 9 and ids[-1] == smollm2.eos and ids.count(smollm2.eos) == 2
    assert types == [0] * (ids.index(smollm2.eos) + 1) + [1] * (8 - ids.index(smollm2.eos))


def test_special_tokens_come_from_whichever_file_names_them(tmp_path):
    roberta_like().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 2}))
    assert Tokenizer.from_directory(tmp_path).named() == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": "<mask>"}, "eos_token": "<pad>"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": "{{ messages }}"}))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.named() == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    assert tokenizer.chat_template == "{{ messages }}"


def test_padding_that_the_saver_left_switched_on_is_switched_off(tmp_path):
    inner = roberta_like()
    inner.enable_padding(length=64)
    inner.enable_truncation(4)
    inner.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_directory(tmp_path).encode("a" * 3)) < 64
    assert len(Tokenizer.from_directory(tmp_path).encode("x y z " * 20)) > 4


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "no tokenizer here; expected tokenizer.json"),
        ({"tokenizer.json": '{"model": '}, "tokenizer.json: not a tokenizer file, or cut short"),
        ({"vocab.txt": "a\nb\n"}, "vocab.txt: .UNK., .CLS., .SEP. not in the vocabulary"),
        ({"tokenizer.model": "\x0a\x7f"}, "tokenizer.model: not a sentencepiece model"),
        ({"tokenizer_config.json": "{", "vocab.txt": "[UNK]"}, "tokenizer_config.json: not readable as JSON"),
    ],
)
def test_a_damaged_directory_is_refused_in_a_sentence(files, sentence, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        Tokenizer.from_directory(tmp_path)


def test_a_missing_directory_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        Tokenizer.from_directory(Path("nowhere"))
