"""Whole-word masking: transformers' words, all pieces of a word or none, BERT's count never exceeded, and words by jieba or by the data."""

from collections import Counter

import pytest
import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from luthier.data.stream import Sample
from luthier.objectives._batch import encode
from luthier.objectives.masked import Masked, chosen, places
from luthier.sources.model import Model

TEXT = "unable the cats sat on a mats over unable towns she is playing where he was in the town unable cats dogs ran"
ROW = Sample({"text": TEXT}, 0, 0, 0)


def drawn(model: Model, row: dict, objective: Masked, seed: int, length: int = 64) -> list:
    return encode(objective, [Sample(row, 0, 0, seed)], model, length)[0]


@pytest.fixture
def model(encoder) -> Model:
    return encoder("BertForMaskedLM")[0]


def words_of(model: Model, ids: list[int]) -> list[list[int]]:
    """By hand: a piece that begins with ## belongs to the word before it."""
    words: list[list[int]] = []
    for i, token in enumerate(ids):
        if token in (model.tokenizer.cls, model.tokenizer.sep):
            continue
        if model.tokenizer.token(token).startswith("##"):
            words[-1].append(i)
        else:
            words.append([i])
    return words


def test_a_word_is_chosen_whole_or_not_at_all_and_pieces_are_replaced_each_by_itself(model):
    ids = [model.tokenizer.cls, *model.tokenizer.encode(TEXT), model.tokenizer.sep]
    words, fates, counts = words_of(model, ids), Counter(), Counter()
    assert sum(len(word) > 1 for word in words) >= 6
    for seed in range(600):
        (example,) = drawn(model, {"text": TEXT}, Masked(words="pieces", rate=0.3), seed)
        at = set(example.at["masked"])
        assert all(at.issuperset(word) or at.isdisjoint(word) for word in words)
        assert example.labels["masked"] == [ids[i] for i in sorted(at)] and len(at) <= round(0.3 * len(ids))
        counts[len(at)] += 1
        for word in words:
            if len(word) == 2 and at.issuperset(word):
                fates[tuple(example.ids[i] == model.tokenizer.mask for i in word)] += 1
    assert counts[round(0.3 * len(ids))] > 500  # mostly exact; one less where no word of that length is left
    both = fates[True, True] / sum(fates.values())
    assert both == pytest.approx(0.64, abs=0.05)  # 0.8 squared: each piece by itself


def test_the_words_are_those_of_transformers_collator(model):
    """Its choice is another (each word with the same probability, always [MASK]); its grouping by characters' places is ours."""
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=model.tokenizer.inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    code = theirs(TEXT, return_offsets_mapping=True, return_special_tokens_mask=True)
    collator = DataCollatorForLanguageModeling(
        theirs, mlm_probability=0.3, whole_word_mask=True, mask_replace_prob=1, random_replace_prob=0
    )
    groups, _ = collator._calc_word_ids_and_prob_mask(
        torch.tensor([code["offset_mapping"]]).numpy(), torch.tensor([code["special_tokens_mask"]]).numpy()
    )
    mine = words_of(model, code["input_ids"])
    assert [[i for i, group in enumerate(groups[0]) if group == number] for number in range(1, len(mine) + 1)] == mine
    chosen_words = set()
    for seed in range(300):
        (example,) = drawn(model, {"text": TEXT}, Masked(words="pieces", rate=0.1), seed)
        assert example.ids != code["input_ids"] or example.at["masked"]
        chosen_words |= {tuple(word) for word in mine if set(word) <= set(example.at["masked"])}
    assert chosen_words == {tuple(word) for word in mine}


def test_a_word_too_long_is_left_out_and_the_next_is_taken():
    assert chosen([[1, 2], [3, 4, 5], [6], [7]], 3) == [1, 2, 6]
    assert chosen([[1, 2, 3]], 2) == []


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in jieba's own files, when they are compiled
def test_words_of_the_data_and_of_jieba_are_kept_together(model):
    ids = [model.tokenizer.cls, *model.tokenizer.encode("我爱北京天"), model.tokenizer.sep]
    assert len(ids) == 7
    for objective, row in (
        (Masked(words="given", rate=0.3), {"text": "我爱 北京天", "words": ["我", "爱", "北京", "天"]}),
        (Masked(words="jieba", rate=0.3), {"text": "我爱北京天"}),
    ):
        seen = Counter(tuple(drawn(model, row, objective, seed)[0].at["masked"]) for seed in range(120))
        assert (3, 4) in seen and not any((3 in at) != (4 in at) for at in seen), objective.words
    plain = Counter(tuple(drawn(model, {"text": "我爱北京天"}, Masked(rate=0.3), seed)[0].at["masked"]) for seed in range(120))
    assert any((3 in at) != (4 in at) for at in plain)


def test_words_that_are_not_the_texts_and_tokenizers_without_pieces_are_refused(model, decoder):
    with pytest.raises(ValueError, match="the word '上海' does not follow in the text at character 2"):
        places("我爱北京", ["我爱", "上海"], ROW)
    with pytest.raises(ValueError, match="has none under 'words'"):
        drawn(model, {"text": "我爱"}, Masked(words="given"), 0)
    other, _ = decoder()
    other.net.causal, other.tokenizer.mask = False, 256
    with pytest.raises(ValueError, match="goes by WordPiece's ##"):
        Masked(words="pieces").check(other)


def test_the_column_of_words_comes_through(tmp_path):
    from luthier.data.forms import normalise

    assert normalise({"text": "我爱", "words": ["我", "爱"]}, "text") == {"text": "我爱", "words": ["我", "爱"]}
