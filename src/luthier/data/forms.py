"""The forms rows come in, told by their columns, and each row in the one shape its task is written in.

| form | columns | normalised |
|---|---|---|
| messages | messages: [{role, content}] | {"messages": [{"role", "content"}]} |
| sharegpt | conversations: [{from, value}], system | the same |
| alpaca | instruction, input, output, system, history; or instances | the same |
| prompt | prompt and completion (response, answer, output) | the same |
| translation | source and target: two texts, one to be made of the other | {"source", "target"} |
| text, lines | text (content), words where they are given | {"text"}, {"text", "words"} |
| labelled | text or two texts, and a label | {"text", "label"} or {"text", "pair", "label"} |
| scored | two texts and a score | {"text", "pair", "score"} |
| tags | tokens and tags | {"tokens", "tags"} |
| extract | question, context, answers | {"question", "context", "answers": [{"text", "start"}]} |
| choices | question, choices, answer | {"question", "choices", "answer"} (answer: a number from 0) |
| captions | image (a file) and caption, captions or text | {"image", "text"} (text: one, or a list to draw from) |

Conversations may have pictures: illustrated.py. Any row may name the adapter that it is for, where a model has several: a column
adapter, kept as it is.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from luthier.data.illustrated import IMAGE, show
from luthier.lookup import suggest

ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "system": "system", "developer": "developer",
    "tool": "tool", "function": "function", "observation": "tool", "ipython": "ipython",
}  # fmt: skip
TEXT = ("text", "sentence", "sentence1", "content", "review", "premise", "sentence_A", "s1", "question1", "document")
PAIR = ("pair", "text_pair", "sentence2", "hypothesis", "sentence_B", "s2", "question2")
LABEL = ("label", "labels", "class", "category", "gold_label", "entailment_judgment", "target")
SCORE = ("score", "similarity", "relatedness_score", "rating")
TAGS = ("tags", "ner_tags", "pos_tags", "labels")
COMPLETION = ("completion", "response", "answer", "output")
CHOICES = ("choices", "options", "candidates")
CAPTION = ("caption", "captions")
ANSWER = ("answer", "answerKey", "label", "answer_key")

Row = Mapping[str, Any]


def detect(rows: Sequence[Row]) -> str:
    """The form of the rows, from the columns of the first few."""
    columns = {name for row in rows[:20] for name in row}
    values = {name: next((row[name] for row in rows[:20] if row.get(name) is not None), None) for name in columns}
    for form, fits in _TESTS:
        if fits(values):
            return form
    seen = [str(name)[:40] for name in sorted(columns)]
    told = ", ".join(seen[:12]) + (f" and {len(seen) - 12} more" if len(seen) > 12 else "") or "none"
    raise ValueError(
        f"the form of these rows is not known; columns seen: {told}. Name the form (data.form) or say which column is which "
        "(data.columns, such as {text: review, label: stars}; by number, {text: 1, label: 0}, in a table without a header line)"
    )


def rename(row: Row, columns: Mapping[str, str | int]) -> dict[str, Any]:
    """The row with our names in place of the file's, {ours: theirs}."""
    theirs = {ours: str(name) for ours, name in columns.items()}
    missing = [name for name in theirs.values() if name not in row]
    if missing:
        raise ValueError(f"data.columns names {', '.join(missing)}, which this row does not have; its columns are {', '.join(row)}")
    rest = {name: value for name, value in row.items() if name not in theirs.values()}
    return {**rest, **{ours: row[name] for ours, name in theirs.items()}}


def normalise(row: Row, form: str, system: str | None = None) -> dict[str, Any]:
    """The row in its task's one shape. Raises ValueError where the row lacks what its form needs."""
    normal = _NORMAL[form](row)
    if row.get("adapter") not in (None, ""):
        normal["adapter"] = str(row["adapter"])
    if "messages" in normal:
        show(normal["messages"], row)
        _check(normal["messages"])
        if system is not None and normal["messages"][0]["role"] != "system":
            normal["messages"] = [{"role": "system", "content": system}, *normal["messages"]]
    return normal


def _check(messages: list[dict[str, str]]) -> None:
    if not any(message["role"] == "assistant" for message in messages):
        found = ", ".join(message["role"] for message in messages) or "none at all"
        raise ValueError(f"no assistant turn (roles: {found}), so there is nothing to learn; add the answer or remove the row")
    if not any(message["content"].strip() for message in messages if message["role"] == "assistant"):
        raise ValueError("every assistant turn is empty, so there is nothing to learn; add the answer or remove the row")


def _captions(row: Row) -> dict:
    said = row[_first(row, (*CAPTION, *TEXT))]
    texts = said if isinstance(said, list) else [said]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("a caption is a text, or a list of texts; this row has an empty one or something else")
    return {"image": _text(row, ("image",)), "text": texts[0] if len(texts) == 1 else texts}


def _messages(row: Row) -> dict:
    key = _first(row, ("messages", "conversation", "conversations"))
    return {"messages": [_message(turn, "role", "content") for turn in _turns(row, key)]}


def _sharegpt(row: Row) -> dict:
    turns = [_message(turn, "from", "value") for turn in _turns(row, _first(row, ("conversations", "messages")))]
    return {"messages": _with_system(row, turns)}


def _alpaca(row: Row) -> dict:
    instances = row.get("instances")  # the seed tasks of Self-Instruct keep input and output one level down
    given = {**row, **instances[0]} if isinstance(instances, list) and instances and isinstance(instances[0], dict) else row
    question = _text(given, ("instruction",)) + ("\n\n" + str(given["input"]) if given.get("input") else "")
    turns = []
    for past in given.get("history") or []:
        if not (isinstance(past, Sequence) and len(past) == 2):
            raise ValueError("history is a list of [question, answer] pairs; this row has another")
        turns += _exchange(str(past[0]), str(past[1]))
    return {"messages": _with_system(given, turns + _exchange(question, _text(given, ("output",))))}


def _prompt(row: Row) -> dict:
    if isinstance(row.get("prompt"), list):  # both halves may be lists of messages
        turns = [_message(turn, "role", "content") for turn in row["prompt"]]
        key = _first(row, COMPLETION)
        if isinstance(row[key], list):
            return {"messages": turns + [_message(turn, "role", "content") for turn in row[key]]}
        return {"messages": [*turns, {"role": "assistant", "content": _text(row, (key,))}]}
    return {"messages": _with_system(row, _exchange(_text(row, ("prompt",)), _text(row, COMPLETION)))}


def _plain(row: Row) -> dict:
    if isinstance(row.get("paragraphs"), list):
        return {"text": "\n".join(map(str, row["paragraphs"]))}
    words = {"words": list(map(str, row["words"]))} if isinstance(row.get("words"), list) else {}
    return {"text": _text(row, TEXT), **words}


def _labelled(row: Row) -> dict:
    pair = {"pair": _text(row, PAIR)} if any(name in row for name in PAIR) else {}
    return {"text": _text(row, TEXT), **pair, "label": label(row[_first(row, LABEL)])}


def _scored(row: Row) -> dict:
    key = _first(row, (*SCORE, "label"))
    pair = {"pair": _text(row, PAIR)} if any(name in row for name in PAIR) else {}
    try:
        return {"text": _text(row, TEXT), **pair, "score": float(row[key])}
    except (TypeError, ValueError):
        raise ValueError(f"column {key!r} holds {row[key]!r} where a number was expected") from None


def _tags(row: Row) -> dict:
    tokens, tags = row[_first(row, ("tokens", "words"))], row[_first(row, TAGS)]
    if isinstance(tokens, str) and isinstance(tags, str):
        tokens, tags = tokens.split(), tags.split()
    if not (isinstance(tokens, list) and isinstance(tags, list)) or len(tokens) != len(tags):
        raise ValueError(f"{len(tokens)} tokens and {len(tags)} tags in one row; every token needs one tag")
    return {"tokens": [str(token) for token in tokens], "tags": [label(tag) for tag in tags]}


def _extract(row: Row) -> dict:
    answers = row[_first(row, ("answers", "answer"))]
    if isinstance(answers, Mapping):  # {"text": [...], "answer_start": [...]}
        answers = [{"text": text, "start": start} for text, start in zip(answers["text"], answers["answer_start"], strict=True)]
    context = _text(row, ("context",))
    found = [_answer(answer, context) for answer in ([answers] if isinstance(answers, str) else answers or [])]
    return {"question": _text(row, ("question",)), "context": context, "answers": found}


def _answer(answer: str | Row, context: str) -> dict:
    text = answer if isinstance(answer, str) else str(answer["text"])
    start = context.find(text) if isinstance(answer, str) else int(answer.get("start", answer.get("answer_start", -1)))
    if start < 0 or context[start : start + len(text)] != text:
        raise ValueError(f"the answer {text[:60]!r} does not stand at character {start} of the context; mend its start")
    return {"text": text, "start": start}


def _choices(row: Row) -> dict:
    question, choices = row.get("question"), None
    if isinstance(question, Mapping):  # ARC: {"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}
        question, choices = question["stem"], question["choices"]
    elif "choice1" in row:  # COPA
        numbered = sorted(name for name in row if name.startswith("choice") and name[6:].isdigit())
        question = " ".join(
            filter(None, [_text(row, ("premise", "question")), str(row["question"]) if "premise" in row and question else None])
        )
        choices = [row[name] for name in numbered]
    else:
        question, choices = _text(row, ("question", *TEXT)), row[_first(row, CHOICES)]
    if isinstance(choices, Mapping):
        names, texts = [str(name) for name in choices["label"]], list(choices["text"])
    elif choices and isinstance(choices[0], Mapping):
        names, texts = [str(choice["label"]) for choice in choices], [choice["text"] for choice in choices]
    else:
        names, texts = [], list(choices)
    return {"question": str(question), "choices": [str(text) for text in texts], "answer": _chosen(row[_first(row, ANSWER)], names, texts)}


def _chosen(answer: Any, names: list[str], texts: list) -> int:
    """The number of the right choice, from 0, whether given as a number, a letter or the text itself."""
    if str(answer) in names:
        return names.index(str(answer))
    if answer in texts:
        return texts.index(answer)
    letter = str(answer).strip()
    number = ord(letter.upper()) - ord("A") if len(letter) == 1 and letter.isalpha() else int(letter) if letter.isdigit() else -1
    if not 0 <= number < len(texts):
        raise ValueError(f"the answer {answer!r} is none of the {len(texts)} choices; give its number from 0, its letter or its text")
    return number


def label(value: Any) -> int | str:
    """A class as a number or a name, the same from CSV ("1") and JSON (1)."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    text = str(value).strip()
    if value is None or not text:
        raise ValueError("an empty label; give the class or remove the row")
    return int(text) if text.removeprefix("-").isdecimal() and text.isascii() else text


def _message(turn: Any, role: str, content: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or role not in turn or content not in turn:
        raise ValueError(f"a turn needs {role!r} and {content!r}; this one is {json.dumps(turn, ensure_ascii=False, default=str)[:80]}")
    said, images = turn[content], list(turn.get("images") or [])
    if isinstance(said, list):  # [{"type": "text", "text": ...}, {"type": "image", "image": ...}, ...]
        if any(not isinstance(part, Mapping) or part.get("type") not in ("text", "image") for part in said):
            raise ValueError("a turn holds something that is neither text nor a picture; only these can be learnt from here")
        images = [part.get("image", part.get("path", part.get("url"))) for part in said if part["type"] == "image"]
        said = "".join(str(part["text"]) if part["type"] == "text" else IMAGE for part in said)
    if not isinstance(said, str):
        raise ValueError(f"the {content!r} of a turn is a {type(said).__name__} where text was expected")
    who = str(turn[role])
    known = ROLES.get(who.lower())
    if known is None:
        raise ValueError(f"a turn is by {who!r}{suggest(who, ROLES)}")
    return {"role": known, "content": said, "parts": images} if images else {"role": known, "content": said}


def _turns(row: Row, key: str) -> list:
    turns = row[key]
    if isinstance(turns, str):  # CSV holds a list as JSON text
        try:
            turns = json.loads(turns)
        except json.JSONDecodeError as error:
            raise ValueError(f"column {key!r} is not a list of turns ({error.msg})") from error
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"column {key!r} holds no turns; a conversation is a list of them")
    return turns


def _exchange(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _translation(row: Row) -> dict:
    found = {side: _text(row, (side,)) for side in ("source", "target")}
    empty = [side for side, text in found.items() if not text.strip()]
    if empty:
        raise ValueError(f"the {' and the '.join(empty)} of this row is empty, so there is nothing to learn; fill it in, or remove the row")
    return found


def _with_system(row: Row, turns: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": "system", "content": str(row["system"])}, *turns] if row.get("system") else turns


def _first(row: Row, names: Iterable[str]) -> str:
    for name in names:
        if row.get(name) is not None:
            return name
    names = list(names)
    empty = [name for name in names if name in row]
    if empty:
        raise ValueError(f"{' and '.join(map(repr, empty))} {'is' if len(empty) == 1 else 'are'} empty; fill it in, or remove the row")
    raise ValueError(f"the row has none of the columns {', '.join(names)}; its columns are {', '.join(map(str, row)) or 'none'}")


def _text(row: Row, names: Iterable[str]) -> str:
    value = row[_first(row, names)]
    if not isinstance(value, str | int | float):
        raise ValueError(f"text was expected in {' or '.join(names)}, found a {type(value).__name__}")
    return str(value)


def _has(values: Row, names: Iterable[str]) -> bool:
    return any(values.get(name) is not None for name in names)


def _is_turns(values: Row, names: Iterable[str], key: str) -> bool:
    for name in names:
        turns = values.get(name)
        if isinstance(turns, str) and turns.lstrip().startswith("["):
            return f'"{key}"' in turns
        if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) and key in turns[0]:
            return True
    return False


_TESTS = (
    ("captions", lambda v: isinstance(v.get("image"), str) and (_has(v, CAPTION) or (_has(v, TEXT) and not _has(v, LABEL)))),
    ("messages", lambda v: _is_turns(v, ("messages", "conversation", "conversations"), "role")),
    ("sharegpt", lambda v: _is_turns(v, ("conversations", "messages"), "from")),
    ("alpaca", lambda v: _has(v, ("instruction",)) and _has(v, ("output", "instances"))),
    ("prompt", lambda v: _has(v, ("prompt",)) and _has(v, COMPLETION)),
    ("translation", lambda v: _has(v, ("source",)) and _has(v, ("target",))),
    ("extract", lambda v: _has(v, ("question",)) and _has(v, ("context",)) and _has(v, ("answers", "answer"))),
    ("choices", lambda v: (_has(v, CHOICES) or "choice1" in v or isinstance(v.get("question"), Mapping)) and _has(v, ANSWER)),
    ("tags", lambda v: _has(v, ("tokens", "words")) and _has(v, TAGS)),
    ("scored", lambda v: _has(v, TEXT) and _has(v, PAIR) and _has(v, SCORE) and not _has(v, ("label",))),
    ("labelled", lambda v: _has(v, TEXT) and _has(v, LABEL)),
    ("text", lambda v: _has(v, TEXT) or isinstance(v.get("paragraphs"), list)),
)

_NORMAL = {
    "messages": _messages, "sharegpt": _sharegpt, "alpaca": _alpaca, "prompt": _prompt, "translation": _translation, "text": _plain, "lines": _plain,
    "labelled": _labelled, "scored": _scored, "tags": _tags, "extract": _extract, "choices": _choices, "captions": _captions,
}  # fmt: skip
