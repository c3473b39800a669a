"""BLEU against sacrebleu."""

import pytest
import sacrebleu

from luthier.evaluation.bleu import BLEU


def theirs(predictions: list[str], references: list[list[str]], tokens: str, lowercase: bool = False) -> float:
    streams = [list(stream) for stream in zip(*references, strict=True)]
    # force: no warning about texts that look tokenised already
    return sacrebleu.corpus_bleu(predictions, streams, tokenize=tokens, lowercase=lowercase, force=True).score


@pytest.mark.parametrize("tokens", ["13a", "zh", "char", "none"])
def test_equals_sacrebleu_on_random_corpora_with_several_references(corpora: list, tokens: str) -> None:
    for predictions, references in corpora:
        expected = theirs(predictions, references, tokens)
        assert BLEU(tokens=tokens).score(predictions, references)["bleu"] == pytest.approx(expected, abs=1e-9)  # type: ignore[arg-type]


def test_equals_sacrebleu_in_lower_case(corpora: list) -> None:
    for predictions, references in corpora:
        expected = theirs(predictions, references, "13a", lowercase=True)
        assert BLEU(tokens="13a", lowercase=True).score(predictions, references)["bleu"] == pytest.approx(expected, abs=1e-9)


def test_equals_sacrebleu_on_real_text(real_texts: tuple[list[str], list[str]]) -> None:
    predictions, references = real_texts
    measure = BLEU()
    expected = theirs(predictions, [[r] for r in references], measure.chosen(references))
    assert measure.score(predictions, references)["bleu"] == pytest.approx(expected, abs=1e-9)
    assert expected > 1


def test_every_character_is_split_as_sacrebleu_splits_it() -> None:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

    from luthier.evaluation.bleu import SPLITTERS

    text = ["a" + chr(c) + "1" for c in range(32, 0x30000) if not 0xD800 <= c < 0xE000]
    for name, tokenizer in (("13a", Tokenizer13a()), ("zh", TokenizerZh())):
        for start in range(0, len(text), 500):
            line = "z".join(text[start : start + 500])
            assert SPLITTERS[name](line) == tokenizer(line).split(), (name, start)


def test_chinese_references_choose_the_tokeniser_by_character() -> None:
    assert BLEU().chosen(["hello"]) == "13a"
    assert BLEU().chosen(["hello", "你好"]) == "zh"
    assert BLEU().score(["今天天气好"], ["今天天气很好"])["bleu"] > 40


def test_identical_texts_score_100_and_disjoint_ones_0() -> None:
    assert BLEU().score(["one two three four"], ["one two three four"])["bleu"] == pytest.approx(100)
    assert BLEU().score(["one two three four"], ["five six seven eight"])["bleu"] == 0
    assert BLEU().score([""], ["five six seven eight"])["bleu"] == 0


def test_unequal_counts_and_empty_corpora_are_refused() -> None:
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        BLEU().score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="nothing to score"):
        BLEU().score([], [])
