"""Writes rows to a file whose ending says how: JSONL, JSON, CSV, TSV or Parquet. The file appears whole or not at all."""

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

KINDS = ("jsonl", "json", "csv", "tsv", "parquet")


def write_rows(rows: Iterable[dict[str, Any]], path: str | Path) -> int:
    """Writes the rows and returns how many; a half-written file never carries the name."""
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise ValueError(f"{path}: files ending in {path.suffix!r} are not written; use one of {', '.join(KINDS)}")
    fresh = path.with_name(path.name + ".part")
    try:
        count = _parquet(rows, fresh) if kind == "parquet" else _text(rows, fresh, kind)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    return count


def as_sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    """A normalised conversation as from / value turns."""
    names = {"user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names.get(turn["role"], turn["role"]), "value": turn["content"]} for turn in row["messages"]]}


def _text(rows: Iterable[dict[str, Any]], path: Path, kind: str) -> int:
    with path.open("w", encoding="utf-8", newline="") as file:
        if kind in ("csv", "tsv"):
            return _table(rows, file, "\t" if kind == "tsv" else ",")
        count = 0
        file.write("[" if kind == "json" else "")
        for row in rows:
            separator = ",\n" if count and kind == "json" else ""
            file.write(separator + json.dumps(row, ensure_ascii=False) + ("" if kind == "json" else "\n"))
            count += 1
        file.write("]\n" if kind == "json" else "")
        return count


def _table(rows: Iterable[dict[str, Any]], file: TextIO, separator: str) -> int:
    kept = list(rows)
    names = list(dict.fromkeys(name for row in kept for name in row))
    writer = csv.DictWriter(file, names, delimiter=separator)
    writer.writeheader()
    for row in kept:  # a list or an object is written as JSON, which reading understands for conversations
        writer.writerow(
            {name: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value for name, value in row.items()}
        )
    return len(kept)


def _parquet(rows: Iterable[dict[str, Any]], path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    kept = list(rows)
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(kept), path)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise ValueError(f"these rows do not fit into columns of one type each ({error}); write JSONL instead") from error
    return len(kept)
