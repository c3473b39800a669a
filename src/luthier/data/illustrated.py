"""Rows that show pictures: which files, and where each stands in the text.

Conversations name them in a column image (or images), or by parts {"type": "image", "image": FILE} of a turn. The turn that shows them
then has {"images": [FILE]} and says <image> where each stands; before the first question, if the row does not say where.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

IMAGE = "<image>"  # where a picture stands in a text
Row = Mapping[str, Any]


def pictures(row: Row) -> list[str]:
    """The files of a normalised row's pictures, in order."""
    shown = [path for message in row.get("messages", ()) for path in message.get("images", ())]
    return [row["image"], *shown] if "image" in row else shown


def placed(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A normalised row with the paths of its pictures, which are relative to the folder of the file that it is from."""
    for holder in (row, *row.get("messages", ())):
        if "image" in holder:
            holder["image"] = str(folder / Path(holder["image"]).expanduser())
        if "images" in holder:
            holder["images"] = [str(folder / Path(path).expanduser()) for path in holder["images"]]
    return row


def show(messages: list[dict[str, Any]], row: Row) -> None:
    """Gives each turn the pictures that its text has places for."""
    parts = [path for message in messages for path in message.pop("parts", [])]
    column = row.get("images") if row.get("images") is not None else row.get("image")
    images = [path for path in parts if path is not None] or ([] if column is None else column if isinstance(column, list) else [column])
    if parts and not images:
        raise ValueError("a turn holds something that is not text, a picture, and no file is named for it; name it in a column image")
    if not images:
        return
    if not all(isinstance(path, str) for path in images):
        raise ValueError("a picture is named by the path of its file; this row holds something else")
    if not any(IMAGE in message["content"] for message in messages):
        first = next((message for message in messages if message["role"] == "user"), messages[0])
        first["content"] = f"{IMAGE}\n" * len(images) + first["content"]
    places = [message["content"].count(IMAGE) for message in messages]
    if sum(places) != len(images):
        raise ValueError(f"{len(images)} pictures and {sum(places)} places for them ({IMAGE}) in one row; each picture needs one place")
    rest = iter(images)
    for message, count in zip(messages, places, strict=True):
        if count:
            message["images"] = [next(rest) for _ in range(count)]
