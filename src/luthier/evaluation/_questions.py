"""Questions for a model, from a file of any common form; an answer beside a question is its reference, and may be missing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier.data.forms import COMPLETION, ROLES
from luthier.data.read import read
from luthier.evaluation._measure import split

ASKED = ("question", "prompt", "instruction", "text", "content")
RIGHT = ("reference", *COMPLETION)


@dataclass(frozen=True)
class Question:
    """A conversation that ends with the user, what the right answer is, and which adapter is asked; "" where nobody said."""

    messages: list[dict]
    reference: str
    adapter: str = ""


def read_questions(path: str | Path, most: int | None = None) -> list[Question]:
    """Every row of the file, or the first `most`. A text file holds one question a line."""
    rows = read(path, "lines")
    found = []
    for i in range(min(len(rows), most or len(rows))):
        try:
            found.append(replace(question(rows[i]), adapter=str(rows[i].get("adapter") or "")))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{rows.where(i)}: no question there ({error}); give a question, a prompt or messages") from None
    return found


def question(row: Mapping[str, Any]) -> Question:
    turns = row.get("messages") or row.get("conversations")
    if isinstance(turns, list):
        asked, reference = split([message(turn) for turn in turns])
        if not asked:
            raise ValueError("nothing is asked before the answer")
        return Question(asked, reference)
    asked = str(next(row[name] for name in ASKED if row.get(name))) if any(row.get(name) for name in ASKED) else ""
    if not asked.strip():
        raise ValueError(f"columns {', '.join(map(str, row))}")
    text = f"{asked}\n\n{row['input']}" if row.get("input") else asked
    system = [{"role": "system", "content": str(row["system"])}] if row.get("system") else []
    reference = next((row[name] for name in RIGHT if isinstance(row.get(name), str)), "")
    return Question([*system, {"role": "user", "content": text}], reference)


def message(turn: Mapping[str, Any]) -> dict:
    """{role, content}, or sharegpt's {from, value}."""
    role, content = (turn["role"], turn["content"]) if "role" in turn else (turn["from"], turn["value"])
    return {"role": ROLES[str(role)], "content": str(content)}
