"""Every kind of file gives the same rows; every bad one ends in a sentence with file, line and the way out."""

import csv
import gzip
import json

import pytest

from luthier.data.read import PIECE, read
from luthier.data.write import write_rows

ROWS = [{"text": 'one, "quoted"\nand a second line', "label": "a"}, {"text": "二 🎉\ttab", "label": "b"}, {"text": "three", "label": "c"}]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("zipped", [False, True])
def test_all_kinds_give_the_rows_that_were_written(kind, zipped, tmp_path):
    path = tmp_path / f"rows.{kind}"
    assert write_rows(iter(ROWS), path) == 3
    if zipped and kind != "parquet":
        packed = tmp_path / f"rows.{kind}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    rows = read(path)
    assert list(rows) == ROWS and rows[-1] == ROWS[2] and rows[1:] == ROWS[1:]
    with pytest.raises(IndexError):
        rows[3]
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".part")] == []


def test_parquet_written_by_pyarrow_and_csv_by_the_standard_library(tmp_path):
    import pyarrow
    import pyarrow.parquet

    nested = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}] * 5
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(nested), tmp_path / "n.parquet", row_group_size=2)
    assert list(read(tmp_path / "n.parquet")) == nested
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b"], ["x" * 200_000, "y"]])
    assert read(tmp_path / "c.csv")[0] == {"a": "x" * 200_000, "b": "y"}


def test_blank_lines_are_passed_over_and_lines_still_counted_from_one(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\r\n{"text": "a"}\r\n\n   \n{"text": "b"}')
    rows = read(path)
    assert [row["text"] for row in rows] == ["a", "b"]
    assert rows.where(1) == f"{path}:5"


def test_json_may_be_a_list_an_object_with_a_list_or_one_object_a_line(tmp_path):
    path = tmp_path / "x.json"
    for text in (json.dumps(ROWS), json.dumps({"version": 1, "data": ROWS}), "\n".join(map(json.dumps, ROWS)), "\ufeff" + json.dumps(ROWS)):
        path.write_text(text, encoding="utf-8")
        assert list(read(path)) == ROWS


def test_squad_is_unrolled_to_one_row_per_question(tmp_path):
    question = {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}
    article = {"title": "t", "paragraphs": [{"context": "Ann sat.", "qas": [question, {**question, "id": "2"}]}]}
    (tmp_path / "x.json").write_text(json.dumps({"version": "1.1", "data": [article]}))
    assert [row["id"] for row in read(tmp_path / "x.json")] == ["1", "2"]
    assert read(tmp_path / "x.json")[0]["context"] == "Ann sat."


def test_a_tsv_with_bare_quotation_marks_is_taken_as_it_stands(tmp_path):
    (tmp_path / "x.tsv").write_text('sentence\tlabel\n"He said\t1\nit"s\t0\n')
    assert [row["sentence"] for row in read(tmp_path / "x.tsv")] == ['"He said', 'it"s']


def test_a_table_without_a_header_line_has_numbered_columns(tmp_path):
    (tmp_path / "x.csv").write_text("3,Title one\n1,Title two\n")
    assert list(read(tmp_path / "x.csv", header=False)) == [{"0": "3", "1": "Title one"}, {"0": "1", "1": "Title two"}]


def test_text_is_one_document_a_line_or_running_text_in_pieces(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("one\ntwo\n  three\n", encoding="utf-8")
    assert [row["text"] for row in read(path)] == ["one", "two", "  three"]
    running = "\n\n".join(f"Speaker {i}:\n" + "words " * 40 for i in range(200))
    path.write_text(running, encoding="utf-8")
    pieces = [row["text"] for row in read(path)]
    assert "".join(pieces) == running and max(map(len, pieces)) <= PIECE + 300 and len(pieces) < 10
    assert len(read(path, form="lines")) == 400


BAD = {
    "missing.jsonl": (None, r"missing.jsonl: no such file"),
    "x.jsonl": (b'{"a": 1}\n\n{"a": }\n', r"x.jsonl:3: not valid JSON: Expecting value at column 7; mend or remove"),
    "cut.jsonl": (b'{"a": 1}\n{"a": "b', r"cut.jsonl:2: not valid JSON"),
    "list.jsonl": (b"[1, 2]\n", r"list.jsonl:1: a JSON object was expected, found a list"),
    "x.json": (b'[{"a": 1},\n {"a" 2}]', r"x.json:2: not valid JSON"),
    "number.json": (b"3", r"number.json: a JSON list of objects was expected, found a int"),
    "strings.json": (b'["a"]', r"strings.json, row 1: a JSON object was expected, found a str"),
    "x.csv": (b"a,b\n1,2\n1,2,3\n", r"x.csv:3: 3 fields where the first line has 2"),
    "latin.csv": ("a,b\n1,2\n1,caf\u00e9\n".encode("latin-1"), r"latin.csv:3: not UTF-8 \(byte 0xe9\); convert the file.*iconv"),
    "gbk.jsonl": ('{"a": "b"}\n{"a": "中文"}\n'.encode("gbk"), r"gbk.jsonl:2: not UTF-8"),
    "gbk.txt": ("一\n中文\n".encode("gb18030"), r"gbk.txt:2: not UTF-8"),
    "empty.jsonl": (b"", r"empty.jsonl: no rows in this file"),
    "blank.jsonl": (b"\n  \n\n", r"blank.jsonl: no rows in this file"),
    "empty.json": (b"[]", r"empty.json: no rows in this file"),
    "void.json": (b"", r"void.json: no rows in this file"),
    "header.csv": (b"a,b\n", r"header.csv: no rows in this file"),
    "empty.txt": (b"\n\n", r"empty.txt: no rows in this file"),
    "x.parquet": (b"PAR1 no", r"x.parquet: not a Parquet file, or cut short"),
    "x.jsonl.gz": (b"\x1f\x8b no", r"x.jsonl.gz: not a gzip file, or cut short"),
    "x.xlsx": (b"PK", r"x.xlsx: files ending in '.xlsx' are not read; use one of .jsonl"),
    "noending": (b"PK", r"noending: files ending in 'nothing' are not read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_ends_in_a_sentence(name, tmp_path):
    content, sentence = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=sentence):
        list(read(tmp_path / name))


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(OSError, match="a directory; name the data file in it"):
        read(tmp_path)


def test_a_failed_writing_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "x.jsonl"
    write_rows(ROWS, path)
    before = path.read_bytes()

    def breaking():
        yield ROWS[0]
        raise OSError("disk full")

    for name in ("x.jsonl", "x.csv"):
        with pytest.raises(OSError, match="disk full"):
            write_rows(breaking(), tmp_path / name)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]


def test_an_unknown_ending_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="'.xml' are not written"):
        write_rows(ROWS, tmp_path / "x.xml")
