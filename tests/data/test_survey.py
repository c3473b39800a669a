"""A look at the data counts what is learnt and says what would go wrong."""

import json

import pytest

from bytebpe import roberta_like
from chats import ENDLESS, SMOLLM2
from luthier.data.read import read
from luthier.data.settings import Data
from luthier.data.stream import Part
from luthier.data.survey import read_as, survey
from luthier.data.template import Template, named
from luthier.data.tokenizer import Tokenizer


def part(tmp_path, *rows) -> Part:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" if isinstance(row, dict) else row + "\n" for row in rows))
    return Part(read(path), Data(str(path)))


def talk(answer: str) -> dict:
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    inner = roberta_like()
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return Tokenizer(inner, bos=0, eos=1, pad=2)


def test_tokens_and_learnt_tokens_are_counted(tmp_path, tokenizer):
    template = Template("smollm2", SMOLLM2)
    found = survey(part(tmp_path, talk("one two"), talk("three")), tokenizer, template)
    whole = [tokenizer.encode(template.render(talk(answer)["messages"])) for answer in ("one two", "three")]
    learnt = [len(tokenizer.encode(answer + "<|im_end|>")) for answer in ("one two", "three")]
    assert found.tokens == [len(ids) for ids in whole] and found.learnt == learnt
    assert (found.cut, found.barren, found.ended, found.problems, found.advice(1024)) == (0, [], 2, [], [])


def test_answers_beyond_the_length_are_told_with_a_length_that_would_do(tmp_path, tokenizer):
    rows = part(tmp_path, *(talk("answer " * n) for n in (10, 20, 30)))
    found = survey(rows, tokenizer, Template("smollm2", SMOLLM2), length=5)
    assert len(found.barren) == found.cut == 3 and found.learnt == [0, 0, 0]
    (advice, *_) = found.advice(5)
    assert "every answer lies beyond data.length=5; raise it to" in advice
    enough = int(advice.split("raise it to ")[1].split()[0])
    assert survey(rows, tokenizer, Template("smollm2", SMOLLM2), length=enough + 10).barren == []


def test_some_answers_beyond_the_length_are_counted_with_the_first_line(tmp_path, tokenizer):
    header = len(tokenizer.encode(Template("smollm2", SMOLLM2).render(talk("")["messages"][:1], generation=True)))
    rows = part(tmp_path, talk("short"), {"messages": [{"role": "user", "content": "long " * 50}, {"role": "assistant", "content": "a"}]})
    (advice,) = survey(rows, tokenizer, Template("smollm2", SMOLLM2), length=header + 20).advice(header + 20)
    assert "1 rows have no answer within" in advice and "x.jsonl:2" in advice


def test_a_template_that_never_ends_a_turn_is_told(tmp_path, tokenizer):
    found = survey(part(tmp_path, talk("a")), tokenizer, Template("endless", ENDLESS))
    assert any("would not learn to stop" in sentence for sentence in found.advice(1024))


def test_every_bad_row_is_listed_and_doubles_are_counted(tmp_path):
    found = survey(part(tmp_path, talk("a"), '{"messages": [}', talk("a"), {"messages": talk("a")["messages"][:1]}))
    assert found.doubles == 1 and len(found.problems) == 2
    assert "x.jsonl:2: not valid JSON" in found.problems[0] and "x.jsonl:4: no assistant turn" in found.problems[1]


def test_what_is_not_a_conversation_is_learnt_whole():
    assert read_as({"text": "abc"}, None) == ("abc", [(0, 3)])
    assert read_as({"text": "abc", "label": 1}, None)[0] == "text: abc\nlabel: 1"
    with pytest.raises(ValueError, match="need a chat template"):
        read_as(talk("a"), None)
    assert read_as(talk("a"), named("alpaca"))[0].endswith("### Instruction:")
