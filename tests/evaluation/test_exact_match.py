"""Exact match and answer F1: SQuAD's rules worked by hand."""

import pytest

from luthier.evaluation.exact_match import ExactMatch, normalise, words

CASES = [  # prediction, right answers, exact, F1
    ("The Denver Broncos!", ["Denver Broncos"], 1, 1),
    ("Broncos", ["Denver Broncos", "the Denver Broncos"], 0, 2 / 3),
    ("in the year 1999, a lot", ["1999"], 0, 2 * (1 / 4) / (1 / 4 + 1)),
    ("to be to be", ["to be"], 0, 2 * 0.5 / 1.5),
    ("", [""], 1, 1),
    ("something", [""], 0, 0),
    ("", ["something"], 0, 0),
    ("the", ["a"], 1, 1),
    ("state-of-the-art", ["stateoftheart"], 1, 1),
    ("“theory”", ["theory"], 0, 0),  # SQuAD drops ASCII punctuation only
    ("北京。", ["北京"], 1, 1),
    ("北京市", ["北京"], 0, 0.8),
    ("《红楼梦》", ["红楼梦"], 1, 1),
    ("GPT4 模型", ["gpt4模型"], 0, 1),
]


@pytest.mark.parametrize(("prediction", "answers", "exact", "overlap"), CASES)
def test_a_worked_case_scores_as_squad_scores_it(prediction: str, answers: list[str], exact: int, overlap: float) -> None:
    assert ExactMatch().score([prediction], [answers]) == pytest.approx({"exact_match": exact, "answer_f1": overlap})


def test_the_score_is_the_mean_over_rows_and_a_lone_string_is_one_answer() -> None:
    scores = ExactMatch().score(["a cat", "dog"], ["cat", ["wolf", "fox"]])
    assert scores == {"exact_match": 0.5, "answer_f1": 0.5}


def test_articles_inside_words_stay() -> None:
    assert normalise("An  ant,\tthe thesis") == "ant thesis"


def test_each_chinese_character_is_a_word() -> None:
    assert words("我在New York") == ["我", "在", "new", "york"]
