"""Rows with pictures on their way from a file: forms, paths, what is wrong with them, and how they are shown."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier.cli.main import app
from luthier.data.forms import detect, normalise
from luthier.data.illustrated import pictures
from luthier.data.read import read
from luthier.data.settings import Data
from luthier.data.stream import Part, open_stream
from luthier.data.survey import survey
from shown import captioned, conversations, write

ANSWER = {"role": "assistant", "content": "a cat"}


@pytest.mark.parametrize(
    "row, normal",
    [
        ({"image": "a.png", "caption": "a cat", "category": "animals"}, {"image": "a.png", "text": "a cat"}),
        ({"image": "a.png", "captions": ["a cat", "the cat"], "license": "x"}, {"image": "a.png", "text": ["a cat", "the cat"]}),
        ({"image": "a.png", "captions": ["a cat"]}, {"image": "a.png", "text": "a cat"}),
        ({"image": "a.png", "text": "a cat"}, {"image": "a.png", "text": "a cat"}),
    ],
)
def test_captions_are_told_by_their_columns(row: dict, normal: dict) -> None:
    assert detect([row]) == "captions"
    assert normalise(row, "captions") == normal
    assert pictures(normal) == ["a.png"]


def test_other_rows_stay_what_they_were() -> None:
    assert detect([{"text": "a", "label": 1, "image": "a.png"}]) == "labelled"
    assert detect([{"text": "a"}]) == "text"
    assert normalise({"messages": [{"role": "user", "content": "<image>?"}, ANSWER]}, "messages")["messages"][0]["content"] == "<image>?"


@pytest.mark.parametrize(
    "row",
    [
        {"image": "a.png", "messages": [{"role": "user", "content": "what?"}, ANSWER]},
        {"images": ["a.png"], "messages": [{"role": "user", "content": "<image>\nwhat?"}, ANSWER]},
        {"image": "a.png", "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nwhat?"}]}, ANSWER]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "\nwhat?"}]}, ANSWER]},
        {"messages": [{"role": "user", "content": "<image>\nwhat?", "images": ["a.png"]}, ANSWER]},
    ],
)
def test_a_picture_of_a_conversation_stands_in_the_turn_that_shows_it(row: dict) -> None:
    normal = normalise(row, "messages")
    assert normal["messages"] == [{"role": "user", "content": "<image>\nwhat?", "images": ["a.png"]}, ANSWER]
    assert normalise(normal, "messages") == normal  # what is written out is read again
    assert pictures(normal) == ["a.png"]


def test_several_pictures_go_to_their_places_in_order() -> None:
    turns = [{"role": "user", "content": "<image> or <image>?"}, ANSWER, {"role": "user", "content": "and <image>"}, ANSWER]
    shown = normalise({"images": ["a", "b", "c"], "messages": turns}, "messages")["messages"]
    assert [turn.get("images") for turn in shown] == [["a", "b"], None, ["c"], None]


@pytest.mark.parametrize(
    "row, form, sentence",
    [
        ({"image": "a.png", "caption": " "}, "captions", "a caption is a text, or a list of texts"),
        ({"image": "a.png", "captions": []}, "captions", "a caption is a text, or a list of texts"),
        ({"caption": "a cat"}, "captions", "none of the columns image"),
        ({"images": ["a"], "messages": [{"role": "user", "content": "<image><image>"}, ANSWER]}, "messages", "1 pictures and 2 places"),
        ({"image": {"bytes": "x"}, "messages": [{"role": "user", "content": "?"}, ANSWER]}, "messages", "named by the path of its file"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row: dict, form: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        normalise(row, form)


def test_paths_are_relative_to_the_file_of_the_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", conversations(tmp_path, 3))
    stream = open_stream(Data(str(path), held_out=1), 0)
    for row in [*stream.held_out, next(stream).row]:
        (picture,) = row["messages"][0]["images"]
        assert Path(picture).is_file() and Path(picture).parent == tmp_path / "pictures"


def test_a_missing_or_broken_picture_stops_the_run_with_file_and_line(tmp_path: Path) -> None:
    rows = captioned(tmp_path, 3)
    path = write(tmp_path / "rows.jsonl", [*rows[:1], {**rows[1], "image": "pictures/none.png"}])
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: no picture at .*none\.png"):
        open_stream(Data(str(path), held_out=0), 0)
    (tmp_path / "pictures" / "2.png").write_text("no picture")
    path = write(tmp_path / "rows.jsonl", [rows[0], rows[2]])
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: .*2\.png is no picture that Pillow knows"):
        open_stream(Data(str(path), held_out=0), 0)
    assert survey(Part(read(path), Data(str(path)))).problems[0].endswith("2.png is no picture that Pillow knows")


def test_the_command_line_shows_a_caption_behind_the_place_of_its_picture(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", captioned(tmp_path, 3))
    told = CliRunner().invoke(app, ["data", "inspect", str(path)]).output
    assert "form captions, 3 rows" in told
    assert "<image>⟦red square⟧" in told
    assert "every one good" in CliRunner().invoke(app, ["data", "validate", str(path)]).output
    path = write(tmp_path / "chats.jsonl", conversations(tmp_path, 3))
    told = CliRunner().invoke(app, ["data", "inspect", str(path)]).output
    assert "<image>" in told and "⟦ red square" in told
    CliRunner().invoke(app, ["data", "convert", str(path), str(tmp_path / "out.jsonl")])
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["messages"][0]["images"] == [
        str(tmp_path / "pictures" / "0.png")
    ]
