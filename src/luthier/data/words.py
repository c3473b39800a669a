"""Byte-level BPE word by word, each word remembered: the ids `tokenizers` gives, at a fraction of its time on text that repeats words.

Every byte-level pre-tokenizer in use starts a new piece at a space that stands between two characters which are not spaces, so texts may be
cut there and the ids put together again. Tokenizers of another kind, or with tokens that hold or swallow spaces, are left alone (`fits`).
"""

import json
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import tokenizers
from tokenizers import models, normalizers

ROOM = 20_000_000  # characters remembered before all is forgotten
PROBE = "I'll can't  two\tTabs\n\n  x = 3.14 + 27; a1b2 naïve 中文 字 ﬁ é 🎉 ok?!  \r\n end. \u00a0x \u3000y ...\n\n\nA"


class Words:
    """Remembers the ids of words; `sizes` holds the bytes each id stands for."""

    def __init__(self, inner: tokenizers.Tokenizer):
        self.inner = inner
        self.pieces: dict[str, list[int]] = {}  # what texts are cut into -> ids
        self.after: dict[str, list[int]] = {}  # of those the words that follow a space, without it
        self.room = ROOM
        self._sizes: np.ndarray | None = None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without specials."""
        if self.room < 0:
            self.pieces, self.after, self.room = {}, {}, ROOM
        pieces, after = self.pieces, self.after  # kept by name: another thread may begin afresh meanwhile
        cuts = [_cut(text, after) for text in texts]
        fresh = list({piece: None for _, _, wanted in cuts for piece in wanted if piece not in pieces})
        for piece, code in zip(fresh, self.inner.encode_batch_fast(fresh, add_special_tokens=False), strict=True):
            ids = code.ids
            if piece[:1] == " " and _whole(piece[1:]) and " " not in piece[1:]:
                after[piece[1:]] = ids
            pieces[piece] = ids  # last: a thread that sees the piece must find the word too
            self.room -= len(piece)
        return [_join(head, words, pieces, after) for head, words, _ in cuts]

    def touching(self, text: str, ids: list[int], ranges: list[tuple[int, int]]) -> list[tuple[int, int]] | None:
        """The tokens that touch each range of characters, by counting bytes; None where the ids do not spell the text (normalised ones)."""
        sizes = self.sizes[ids]
        ends = np.cumsum(sizes)
        plain = text.isascii()
        if (ends[-1] if ids else 0) != (len(text) if plain else len(text.encode())):
            return None
        found, before = [], 0
        for start, stop in ranges:
            if not plain:
                start, stop = len(text[:start].encode()), len(text[:stop].encode())
            first = max(int(np.searchsorted(ends, start, side="right")), before)
            before = max(int(np.searchsorted(ends - sizes, stop, side="left")), first)
            found.append((first, before))
        return found

    @property
    def sizes(self) -> np.ndarray:
        """(vocab,) bytes of text behind each id: in a byte-level vocabulary every character of an entry is one byte."""
        if self._sizes is None:
            vocab = self.inner.get_vocab(with_added_tokens=True)
            added = {id: len(token.content.encode()) for id, token in self.inner.get_added_tokens_decoder().items()}
            self._sizes = np.zeros(max(vocab.values()) + 1, np.int64)
            for token, id in vocab.items():
                self._sizes[id] = added.get(id, len(token))
        return self._sizes


def _cut(text: str, after: Mapping[str, list[int]]) -> tuple[list[str], list[str], list[str]]:
    """The pieces of a text, the words that follow the first with a space each, and what has to be known to join them."""
    head, *words = text.split(" ")
    if not words or not head or head[-1].isspace():
        pieces = cut(text)
        return pieces, [], pieces
    last = " " + words.pop()  # what stands at its end matters to nobody
    unknown = set(words).difference(after)
    if last[1:2].isspace() or last == " " or not all(map(_whole, unknown)):
        pieces = cut(text)
        return pieces, [], pieces
    return [head, last], words, [head, last, *(" " + word for word in unknown)]


def _join(pieces: list[str], words: list[str], known: Mapping[str, list[int]], after: Mapping[str, list[int]]) -> list[int]:
    first, *rest = pieces
    return [*known[first], *chain.from_iterable(map(after.__getitem__, words)), *chain.from_iterable(map(known.__getitem__, rest))]


def cut(text: str) -> list[str]:
    """The text in pieces: each single space between characters that are not spaces begins one."""
    head, *words = text.split(" ")
    pieces, piece = [], head
    for word in words:
        if piece and word and not piece[-1].isspace() and not word[0].isspace():
            pieces.append(piece)
            piece = " " + word
        else:
            piece += " " + word
    return [*pieces, piece]


def _whole(word: str) -> bool:
    """Whether a word has no space of any kind at its ends, which would belong together with its neighbour."""
    return not (word[:1].isspace() or word[-1:].isspace() or not word)


def fits(inner: tokenizers.Tokenizer) -> bool:
    """Whether texts may be cut at single spaces without changing the ids: a byte-level BPE without surprises at spaces."""
    model, normalizer, before = inner.model, inner.normalizer, inner.pre_tokenizer
    if (
        not isinstance(model, models.BPE)
        or model.dropout
        or not (normalizer is None or isinstance(normalizer, normalizers.NFC))
        or before is None
    ):
        return False
    if any(
        token.lstrip or token.rstrip or token.single_word or any(map(str.isspace, token.content))
        for token in inner.get_added_tokens_decoder().values()
    ):
        return False
    steps = json.loads(before.__getstate__())
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    if any(step["type"] not in ("ByteLevel", "Digits", "Split") or step.get("add_prefix_space") for step in steps):
        return False
    pieces = inner.encode_batch_fast(cut(PROBE), add_special_tokens=False)
    return (
        steps[-1]["type"] == "ByteLevel"
        and [id for piece in pieces for id in piece.ids] == inner.encode(PROBE, add_special_tokens=False).ids
    )
