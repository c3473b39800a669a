"""ROUGE against rouge-score, with its own tokeniser on English and with characters as words on Chinese."""

import pytest
from rouge_score.rouge_scorer import RougeScorer

from luthier.evaluation.rouge import ROUGE, words

KINDS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


class ByCharacter:
    """The tokeniser a Chinese user hands to rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def theirs(predictions: list[str], references: list[list[str]], tokenizer: ByCharacter | None = None) -> dict[str, float]:
    scorer = RougeScorer(KINDS, tokenizer=tokenizer)
    scores = [scorer.score_multi(answers, prediction) for prediction, answers in zip(predictions, references, strict=True)]
    return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in KINDS}


def without_chinese(text: str) -> str:
    return "".join(c for c in text if c < "\u2e80")


def test_equals_rouge_score_on_random_western_texts_of_several_lines(corpora: list) -> None:
    for predictions, references in corpora:
        predictions, references = [without_chinese(p) for p in predictions], [[without_chinese(r) for r in row] for row in references]
        assert ROUGE().score(predictions, references) == pytest.approx(theirs(predictions, references), abs=1e-12)


def test_equals_rouge_score_by_character_on_mixed_texts(corpora: list) -> None:
    for predictions, references in corpora:
        assert ROUGE().score(predictions, references) == pytest.approx(theirs(predictions, references, ByCharacter()), abs=1e-12)


def test_equals_rouge_score_on_real_text(real_texts: tuple[list[str], list[str]]) -> None:
    predictions, references = real_texts
    tokenizer = ByCharacter() if any("一" <= c <= "鿿" for c in "".join(references)) else None
    ours = ROUGE().score(predictions, references)
    assert ours == pytest.approx(theirs(predictions, [[r] for r in references], tokenizer), abs=1e-12)
    assert ours["rouge1"] > 0.1


def test_chinese_is_counted_by_character() -> None:
    assert words("我爱GPT-4模型，42!") == ["我", "爱", "gpt", "4", "模", "型", "42"]
    assert ROUGE().score(["我爱你"], ["我想你"])["rouge1"] == pytest.approx(2 / 3)


def test_an_empty_prediction_scores_0() -> None:
    assert ROUGE().score([""], ["a word"]) == dict.fromkeys(KINDS, 0.0)
