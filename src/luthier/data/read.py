"""Rows of a file as dictionaries: JSONL, JSON, CSV, TSV, Parquet, plain text, each also gzipped. Every error names the file and the line."""

import csv
import gzip
import io
import json
import mmap
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

PIECE = 8_000  # characters of running text in one row, about 2,000 tokens
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt", ".text", ".md")


class Rows(Sequence[dict]):
    """The rows of one file. `where(i)` says where row i stands, for messages."""

    kind = "rows"

    def __init__(self, path: Path, rows: Sequence[dict], lines: Sequence[int] | None = None):
        self.path, self.rows, self.lines = path, rows, lines

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> dict: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict]: ...
    def __getitem__(self, index: int | slice) -> dict | list[dict]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self._row(range(len(self))[index])

    def where(self, index: int) -> str:
        """The file and line (or row) of a row."""
        return f"{self.path}, row {index + 1}" if self.lines is None else f"{self.path}:{self.lines[index]}"

    def _row(self, index: int) -> dict:
        return self.rows[index]


class JsonLines(Rows):
    """JSONL: only the places where lines start are kept; a row is parsed when it is asked for."""

    def __init__(self, path: Path, data: bytes | mmap.mmap):
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == 10)
        starts = np.concatenate([[0], ends + 1])
        ends = np.concatenate([ends, [len(data)]])
        full = ends - starts > 1
        for i in np.flatnonzero(full & (ends - starts < 8)):  # perhaps spaces only
            full[i] = bool(data[starts[i] : ends[i]].strip())
        self.data, self.starts, self.ends = data, starts[full], ends[full]
        super().__init__(path, (), (np.flatnonzero(full) + 1).tolist())

    def __len__(self) -> int:
        return len(self.starts)

    def _row(self, index: int) -> dict:
        line = self.data[self.starts[index] : self.ends[index]]
        try:
            row = json.loads(str(line, "utf-8").removeprefix("\ufeff"))
        except UnicodeDecodeError as error:
            raise ValueError(_not_utf8(self.where(index), error)) from error
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{self.where(index)}: not valid JSON: {error.msg} at column {error.colno}; mend or remove this line"
            ) from error
        return _object(row, self.where(index))


class Columns(Rows):
    """Parquet: columns stay as Arrow arrays, memory-mapped; a row is made when it is asked for."""

    def __init__(self, path: Path):
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(path, memory_map=True).combine_chunks()
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path}: not a Parquet file, or cut short ({error}); fetch the file again") from error
        self.columns = {name: table.column(name) for name in table.column_names}
        super().__init__(path, range(table.num_rows))  # type: ignore[arg-type]

    def _row(self, index: int) -> dict:
        return {name: column[index].as_py() for name, column in self.columns.items()}


def read(path: str | Path, form: str = "auto", header: bool = True) -> Rows:
    """Rows of a file, by its name's ending. form "lines" takes a text file line by line; header=False names CSV columns 0, 1, 2 ..."""
    path = Path(path)
    kind = _kind(path)
    if kind == ".parquet":
        rows: Rows = Columns(path)
    elif kind in (".jsonl", ".ndjson"):
        rows = JsonLines(path, _bytes(path))
    elif kind == ".json":
        rows = _json(path)
    elif kind in (".csv", ".tsv"):
        rows = _table(path, "\t" if kind == ".tsv" else ",", header)
    else:
        rows = _text(path, form)
    if not len(rows):
        raise ValueError(f"{path}: no rows in this file; an empty data set cannot be learnt from")
    return rows


def _kind(path: Path) -> str:
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a directory; name the data file in it")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; paths are relative to where the command runs")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]
    if kind not in KINDS:
        raise ValueError(f"{path}: files ending in {kind or 'nothing'!r} are not read; use one of {' '.join(KINDS)}, each also with .gz")
    return kind


def _bytes(path: Path) -> bytes | mmap.mmap:
    if path.suffix.lower() == ".gz":
        try:
            return gzip.decompress(path.read_bytes())
        except (OSError, EOFError) as error:
            raise ValueError(f"{path}: not a gzip file, or cut short ({error}); fetch the file again") from error
    if path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _decoded(path: Path) -> str:
    data = bytes(_bytes(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(_not_utf8(f"{path}:{line}", error)) from error


def _not_utf8(where: str, error: UnicodeDecodeError) -> str:
    return f"{where}: not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file, for example: iconv -f gb18030 -t utf-8"


def _object(row: Any, where: str) -> dict:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a JSON object was expected, found a {type(row).__name__}; write one object per row")
    return row


def _json(path: Path) -> Rows:
    """A list of objects; an object with one such list in it; or, misnamed, one object per line."""
    text = _decoded(path)
    try:
        value = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return JsonLines(path, _bytes(path))
        raise ValueError(f"{path}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}; mend this line") from error
    if isinstance(value, dict):
        lists = [entry for entry in value.values() if isinstance(entry, list)]
        value = lists[0] if len(lists) == 1 else [value]
    if not isinstance(value, list):
        raise ValueError(f"{path}: a JSON list of objects was expected, found a {type(value).__name__}")
    rows = [_object(row, f"{path}, row {i + 1}") for i, row in enumerate(value)]
    return Rows(path, [question for row in rows for question in _squad(row)] if rows and "paragraphs" in rows[0] else rows)


def _squad(article: dict) -> list[dict]:
    """SQuAD's nesting (Rajpurkar et al. 2016), one row per question."""
    pairs = [
        (paragraph, question)
        for paragraph in article.get("paragraphs", [])
        if isinstance(paragraph, dict)
        for question in paragraph.get("qas", [])
    ]
    return [{**question, "context": paragraph.get("context")} for paragraph, question in pairs] or [article]


def _table(path: Path, separator: str, header: bool) -> Rows:
    text = _decoded(path)
    csv.field_size_limit(2**31 - 1)
    # GLUE's files hold bare quotation marks: tab-separated lines that all split alike are not quoted
    bare = separator == "\t" and len({line.count("\t") for line in text.splitlines() if line}) <= 1
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=csv.QUOTE_NONE if bare else csv.QUOTE_MINIMAL)
    names: list[str] = []
    rows, lines = [], []
    try:
        for fields in reader:
            if not fields:
                continue
            if not names:
                names = [field.strip() for field in fields] if header else [str(i) for i in range(len(fields))]
                if header:
                    continue
            if len(fields) != len(names):
                raise ValueError(
                    f"{path}:{reader.line_num}: {len(fields)} fields where the first line has {len(names)}; quote fields that hold {separator!r}"
                )
            rows.append(dict(zip(names, fields, strict=True)))
            lines.append(reader.line_num)
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: {error}; mend this line") from error
    return Rows(path, rows, lines)


def _text(path: Path, form: str) -> Rows:
    """A text without blank lines holds one document a line; one with blank lines is running text, cut at them into rows of some length."""
    text = _decoded(path)
    by_line = form == "lines" or (form == "auto" and not re.search(r"\n[ \t\r]*\n[ \t\r]*\S", text))
    if by_line:
        kept = [(i + 1, line) for i, line in enumerate(text.splitlines()) if line.strip()]
        return Rows(path, [{"text": line} for _, line in kept], [i for i, _ in kept])
    pieces: list[str] = []
    size = PIECE
    for paragraph in re.split(r"(?<=\n)(?=[ \t\r]*\n)", text):
        if size + len(paragraph) > PIECE and (not pieces or pieces[-1].strip()):
            pieces.append("")
            size = 0
        pieces[-1] += paragraph
        size += len(paragraph)
    return Rows(path, [{"text": piece} for piece in pieces if piece.strip()])
