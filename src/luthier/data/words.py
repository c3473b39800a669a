"""Byte-level BPE word by word, each word remembered: the ids `tokenizers` gives, at a fraction of its time on text that repeats words.

Every byte-level pre-tokenizer in use starts a new piece at a space that stands between two characters which are not spaces, so texts may be
cut there and the ids put together again. Tokenizers of another kind, or with tokens that hold or swallow spaces, are left alone (`fits`).
"""

import json
import re
from collections.abc import Sequence

import numpy as np
import tokenizers
from tokenizers import models, normalizers

CUT = re.compile(r"(?<=\S)(?= \S)")
MOST, LONGEST = 200_000, 48  # words remembered, and characters of one
PROBE = "I'll can't  two\tTabs\n\n  x = 3.14 + 27; a1b2 naïve 中文 字 ﬁ é 🎉 ok?!  \r\n end. \u00a0x \u3000y ...\n\n\nA"


class Words:
    """Remembers the ids of words; `sizes` holds the bytes each id stands for."""

    def __init__(self, inner: tokenizers.Tokenizer):
        self.inner = inner
        self.pieces: dict[str, list[int]] = {}  # what texts are cut into -> ids
        self.first: dict[str, list[int]] = {}  # those a text may begin with and a space may follow
        self.after: dict[str, list[int]] = {}  # those that begin with a space, without it
        self._sizes: np.ndarray | None = None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without specials."""
        found: list[list[int] | None] = [self._known(text) for text in texts]
        rest = {i: CUT.split(text) for i, text in enumerate(texts) if found[i] is None}
        fresh = list({piece: None for pieces in rest.values() for piece in pieces if piece not in self.pieces})
        ids = dict(zip(fresh, (code.ids for code in self.inner.encode_batch_fast(fresh, add_special_tokens=False)), strict=True))
        for i, pieces in rest.items():
            whole: list[int] = []
            for piece in pieces:
                whole += ids[piece] if piece in ids else self.pieces[piece]
            found[i] = whole
        self._remember(ids)
        return found  # type: ignore[return-value]

    def _known(self, text: str) -> list[int] | None:
        """Ids of a text of which every word is remembered."""
        words = text.split(" ")
        after = self.after
        try:
            whole = self.first[words[0]].copy()
            for word in words[1:]:
                whole += after[word]
        except KeyError:
            return None
        return whole

    def _remember(self, ids: dict[str, list[int]]) -> None:
        for piece, found in ids.items():
            if not piece or len(piece) > LONGEST or len(self.pieces) >= MOST:
                continue
            self.pieces[piece] = found
            word = piece.removeprefix(" ")
            # a word with a space of any kind at its ends belongs together with its neighbour
            if word and " " not in word and not word[-1].isspace() and not word[0].isspace():
                (self.first if word == piece else self.after)[word] = found

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


def fits(inner: tokenizers.Tokenizer) -> bool:
    """Whether texts may be cut at single spaces without changing the ids: a byte-level BPE without surprises at spaces."""
    model, normalizer, before = inner.model, inner.normalizer, inner.pre_tokenizer
    if not isinstance(model, models.BPE) or model.dropout or not (normalizer is None or isinstance(normalizer, normalizers.NFC)) or before is None:
        return False
    if any(token.lstrip or token.rstrip or token.single_word or any(map(str.isspace, token.content)) for token in inner.get_added_tokens_decoder().values()):
        return False
    steps = json.loads(before.__getstate__())
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    if any(step["type"] not in ("ByteLevel", "Digits", "Split") or step.get("add_prefix_space") for step in steps):
        return False
    pieces = inner.encode_batch_fast(CUT.split(PROBE), add_special_tokens=False)
    return steps[-1]["type"] == "ByteLevel" and [id for piece in pieces for id in piece.ids] == inner.encode(PROBE, add_special_tokens=False).ids
