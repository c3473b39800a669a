"""Forms are told by their columns and come out in one shape per task; rows that lack something say what."""

import pytest

from luthier.data.forms import detect, label, normalise, rename

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SYSTEM = [{"role": "system", "content": "s"}, *TALK]
CASES = [
    ("messages", {"messages": TALK}, {"messages": TALK}),
    ("messages", {"conversation": SYSTEM, "id": 3}, {"messages": SYSTEM}),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, TALK[1]]}, {"messages": TALK}),
    ("messages", {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'}, {"messages": TALK}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, {"messages": TALK}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}, {"messages": SYSTEM}),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}, {"messages": TALK}),
    (
        "alpaca",
        {"instruction": "q", "input": "i", "output": "a", "system": "s"},
        {"messages": [SYSTEM[0], {"role": "user", "content": "q\n\ni"}, TALK[1]]},
    ),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["q", "a"]]}, {"messages": TALK + TALK}),
    ("alpaca", {"id": "x", "instruction": "q", "instances": [{"input": "", "output": "a"}]}, {"messages": TALK}),
    ("prompt", {"prompt": "q", "completion": "a"}, {"messages": TALK}),
    ("prompt", {"prompt": "q", "response": "a", "system": "s"}, {"messages": SYSTEM}),
    ("prompt", {"prompt": TALK[:1], "completion": TALK[1:]}, {"messages": TALK}),
    ("translation", {"source": "s", "target": "t", "id": 1}, {"source": "s", "target": "t"}),
    ("text", {"text": "t", "id": 1}, {"text": "t"}),
    ("text", {"paragraphs": ["a", "b"], "title": "x"}, {"text": "a\nb"}),
    ("labelled", {"text": "t", "label": 1}, {"text": "t", "label": 1}),
    ("labelled", {"sentence": "t", "label": "1"}, {"text": "t", "label": 1}),
    ("labelled", {"premise": "p", "hypothesis": "h", "label": "neutral"}, {"text": "p", "pair": "h", "label": "neutral"}),
    ("labelled", {"sentence1": "p", "sentence2": "h", "label": True}, {"text": "p", "pair": "h", "label": "true"}),
    ("scored", {"sentence1": "p", "sentence2": "h", "score": "2.5"}, {"text": "p", "pair": "h", "score": 2.5}),
    ("tags", {"tokens": ["a", "b"], "ner_tags": ["O", "B-PER"]}, {"tokens": ["a", "b"], "tags": ["O", "B-PER"]}),
    ("tags", {"words": "a b", "tags": "0 1"}, {"tokens": ["a", "b"], "tags": [0, 1]}),
    (
        "extract",
        {"question": "q", "context": "an apple", "answers": {"text": ["apple"], "answer_start": [3]}},
        {"answers": [{"text": "apple", "start": 3}]},
    ),
    ("extract", {"question": "q", "context": "an apple", "answers": []}, {"question": "q", "context": "an apple", "answers": []}),
    ("extract", {"question": "q", "context": "an apple", "answer": "apple"}, {"answers": [{"text": "apple", "start": 3}]}),
    ("choices", {"question": "q", "choices": ["x", "y"], "answer": 1}, {"question": "q", "choices": ["x", "y"], "answer": 1}),
    (
        "choices",
        {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        {"choices": ["x", "y"], "answer": 1},
    ),
    (
        "choices",
        {"question": {"stem": "q", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]}, "answerKey": "B"},
        {"question": "q", "answer": 1},
    ),
    (
        "choices",
        {"premise": "p", "question": "cause", "choice1": "x", "choice2": "y", "label": 0},
        {"question": "p cause", "choices": ["x", "y"], "answer": 0},
    ),
    ("choices", {"content": "c", "candidates": ["x", "y"], "answer": 0}, {"question": "c", "choices": ["x", "y"], "answer": 0}),
    ("choices", {"question": "q", "options": ["x", "y"], "answer": "y"}, {"answer": 1}),
]


@pytest.mark.parametrize(("form", "row", "expected"), CASES)
def test_a_row_is_recognised_and_normalised(form, row, expected):
    assert detect([row]) == form
    normal = normalise(row, form)
    assert {key: normal[key] for key in expected} == expected
    if "messages" in normal or form in ("text", "labelled"):
        assert normal == expected


def test_a_default_system_message_stands_before_those_without_one():
    assert normalise({"messages": TALK}, "messages", system="s") == {"messages": SYSTEM}
    assert normalise({"messages": SYSTEM}, "messages", system="other") == {"messages": SYSTEM}


def test_columns_can_be_renamed_by_name_or_number():
    assert rename({"stars": 3, "review": "good", "x": 0}, {"text": "review", "label": "stars"}) == {"text": "good", "label": 3, "x": 0}
    assert detect([rename({"0": "3", "1": "good"}, {"text": 1, "label": 0})]) == "labelled"
    with pytest.raises(ValueError, match="data.columns names revue, which this row does not have; its columns are review"):
        rename({"review": "x"}, {"text": "revue"})


def test_an_unknown_form_says_the_columns_seen():
    with pytest.raises(ValueError, match=r"columns seen: height, width. Name the form \(data.form\) or say which column is which"):
        detect([{"width": 1}, {"height": 2}])


def test_many_or_long_columns_are_told_in_short():
    with pytest.raises(ValueError) as error:
        detect([{f"{i}" + "x" * 500: 1 for i in range(100)}])
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("form", "row", "sentence"),
    [
        ("messages", {"messages": TALK[:1]}, r"no assistant turn \(roles: user\)"),
        ("messages", {"messages": [TALK[0], {"role": "assistant", "content": " "}]}, "every assistant turn is empty"),
        ("messages", {"messages": []}, "'messages' holds no turns"),
        ("messages", {"messages": [{"role": "user"}]}, "a turn needs 'role' and 'content'; this one is"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "'content' of a turn is a NoneType where text was expected"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "not text"),
        ("messages", {"text": "x"}, "the row has none of the columns messages"),
        ("alpaca", {"instruction": "q", "output": None}, "'output' is empty"),
        ("alpaca", {"instruction": "q", "output": "a", "history": [["q"]]}, "history is a list of"),
        ("prompt", {"prompt": "q", "completion": ""}, "every assistant turn is empty"),
        ("translation", {"source": "s", "target": " "}, "the target of this row is empty"),
        ("labelled", {"text": "t", "label": ""}, "an empty label"),
        ("text", {"text": ["a"]}, "text was expected in text"),
        ("scored", {"text": "t", "score": "high"}, "holds 'high' where a number was expected"),
        ("tags", {"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens and 1 tags in one row"),
        (
            "extract",
            {"question": "q", "context": "an apple", "answers": [{"text": "pear", "start": 3}]},
            "'pear' does not stand at character 3",
        ),
        ("choices", {"question": "q", "choices": ["x", "y"], "answer": "C"}, "'C' is none of the 2 choices"),
    ],
)
def test_a_row_that_lacks_something_says_what(form, row, sentence):
    with pytest.raises(ValueError, match=sentence):
        normalise(row, form)


def test_labels_are_the_same_from_csv_and_json():
    assert [label(value) for value in (1, "1", 1.0, " 1 ")] == [1, 1, 1, 1]
    assert [label(value) for value in ("B-PER", False, "-1", "1.5", "①")] == ["B-PER", "false", -1, "1.5", "①"]


def test_a_misspelt_role_is_refused_with_what_was_meant():
    row = {"messages": [{"role": "usr", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    with pytest.raises(ValueError, match="a turn is by 'usr'; did you mean 'user'"):
        normalise(row, "messages")
