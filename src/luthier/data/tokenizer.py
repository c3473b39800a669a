"""A tokenizer: text to ids and back, with the special tokens by role. Around the `tokenizers` library, torch-free."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import processors

from luthier.data.words import Words, fits

Ranges = list[tuple[int, int]]
ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")


class Tokenizer:
    """bos, eos, pad, unk, cls, sep and mask are ids, or None where the model has no such token.

    adds_bos=True makes `encode(text, specials=True)` start with bos where the tokenizer's own post-processor does not yet do so.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        bos: int | None = None,
        eos: int | None = None,
        pad: int | None = None,
        unk: int | None = None,
        cls: int | None = None,
        sep: int | None = None,
        mask: int | None = None,
        adds_bos: bool = False,
    ):
        inner.no_truncation()  # tokenizer.json may carry the settings of whoever saved it
        inner.no_padding()
        self.inner = inner
        self.bos, self.eos, self.pad, self.unk, self.cls, self.sep, self.mask = bos, eos, pad, unk, cls, sep, mask
        self.chat_template: str | None = None  # the Jinja text that came with the tokenizer, if any
        if adds_bos and not self.adds_bos:
            self._start_with_bos()

    @property
    def adds_bos(self) -> bool:
        """Whether encode(specials=True) starts with bos (a fact of the post-processor)."""
        return self.bos is not None and self.inner.encode("a").ids[:1] == [self.bos]

    @property
    def vocab(self) -> int:
        """Number of ids, added tokens included (rows an embedding needs)."""
        added = self.inner.get_added_tokens_decoder()
        return max(self.inner.get_vocab_size(with_added_tokens=True), max(added, default=-1) + 1)

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Ids of the text; with specials the model's own [CLS] ... [SEP], or bos."""
        return self.inner.encode(text, add_special_tokens=specials).ids

    def encode_batch(self, texts: Sequence[str], specials: bool = False) -> list[list[int]]:
        """Ids of many texts at once, on several threads; words met before are not tokenised again."""
        if self._words is not None and not specials:
            return self._words.encode_batch(texts)
        return [encoding.ids for encoding in self.inner.encode_batch_fast(list(texts), add_special_tokens=specials)]

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and for each the range of characters it stands for; no specials added."""
        encoding = self.inner.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_spans(self, texts: Sequence[str], spans: Sequence[Ranges]) -> list[tuple[list[int], Ranges]]:
        """For each text its ids and, for its ranges of characters, the ranges of tokens that touch them; no specials added."""
        if self._words is None:
            codes = self.inner.encode_batch(list(texts), add_special_tokens=False)
            return [(code.ids, touching(code.offsets, ranges)) for code, ranges in zip(codes, spans, strict=True)]
        found = []
        for text, ids, ranges in zip(texts, self._words.encode_batch(texts), spans, strict=True):
            tokens = self._words.touching(text, ids, ranges)
            found.append((ids, touching(self.spans(text)[1], ranges) if tokens is None else tokens))
        return found

    def pair(self, first: str, second: str | None = None, length: int | None = None) -> tuple[list[int], list[int]]:
        """Ids and segment ids (0, 1) of one text or two, at most `length` ids; the longer text is cut first.

        With a [CLS]: the model's own form. Without: (bos) first eos, and second eos behind it, so that the last id is eos.
        """
        return self.join(
            *(self.inner.encode(text, add_special_tokens=False) for text in (first, second) if text is not None), length=length
        )

    def join(self, a: tokenizers.Encoding, b: tokenizers.Encoding | None = None, length: int | None = None) -> tuple[list[int], list[int]]:
        """`pair` for texts encoded already, without specials; they are cut in place."""
        if self.cls is None:
            return self._pair_of_decoder(a.ids, None if b is None else b.ids, length)
        if length is not None:
            room = length - self.inner.num_special_tokens_to_add(b is not None)
            kept = cut_longest(len(a), 0 if b is None else len(b), max(room, 0))
            a.truncate(kept[0])
            if b is not None:
                b.truncate(kept[1])
        whole = self.inner.post_process(a, b, True)
        return whole.ids, whole.type_ids

    @cached_property
    def _words(self) -> Words | None:
        return Words(self.inner) if fits(self.inner) else None

    def _pair_of_decoder(self, a: list[int], b: list[int] | None, length: int | None) -> tuple[list[int], list[int]]:
        start = [self.bos] if self.bos is not None and self.adds_bos else []
        end = [] if self.eos is None else [self.eos]
        if length is not None:
            room = length - len(start) - len(end) * (1 if b is None else 2)
            kept = cut_longest(len(a), len(b or []), max(room, 0))
            a, b = a[: kept[0]], None if b is None else b[: kept[1]]
        first = start + a + end
        second = [] if b is None else b + end
        return first + second, [0] * len(first) + [1] * len(second)

    def frame(self) -> tuple[list[int], list[int]]:
        """The special tokens before and behind a single text: as its own form has them (XLNet's [CLS] stands last), else bos and eos."""
        if self.cls is None:
            start = [self.bos] if self.bos is not None and self.adds_bos else []
            return start, [] if self.eos is None else [self.eos]
        text, whole = self.encode("a"), self.encode("a", specials=True)
        at = next((i for i in range(len(whole) - len(text)) if whole[i : i + len(text)] == text), None)
        if text and len(whole) > len(text) and (at is not None or whole[-len(text) :] == text):
            at = len(whole) - len(text) if at is None else at
            return whole[:at], whole[at + len(text) :]
        return [self.cls], [] if self.sep is None else [self.sep]

    def decode(self, ids: Sequence[int], specials: bool = False) -> str:
        """Text of the ids; special tokens are left out unless asked for."""
        return self.inner.decode([int(i) for i in ids], skip_special_tokens=not specials)

    def token(self, id: int) -> str:
        """The vocabulary entry of an id, as it is written there."""
        token = self.inner.id_to_token(id)
        if token is None:
            raise ValueError(f"the tokenizer has no token {id}; its ids go to {self.vocab - 1}")
        return token

    def id(self, token: str) -> int | None:
        """The id of a vocabulary entry, or None."""
        return self.inner.token_to_id(token)

    def add(self, tokens: Sequence[str], special: bool = False) -> int:
        """Adds tokens at the end of the vocabulary; returns how many of them were new."""
        entries = [tokenizers.AddedToken(token, special=special, normalized=False) for token in tokens]
        self.__dict__.pop("_words", None)  # a new token may change what a word becomes
        return self.inner.add_special_tokens(entries) if special else self.inner.add_tokens(entries)

    def named(self) -> dict[str, str]:
        """The special tokens under the names templates and Hugging Face files use: {"bos_token": "<s>", ...}."""
        ids = {role: getattr(self, role) for role in ROLES}
        return {f"{role}_token": self.token(id) for role, id in ids.items() if id is not None}

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the ids."""
        return hashlib.sha256((self.inner.to_str() + json.dumps(self.named(), sort_keys=True)).encode()).hexdigest()

    def save(self, directory: str | Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json, which transformers reads with equal ids."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.inner.save(str(folder / "tokenizer.json"))
        settings: dict = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **self.named()}
        if self.bos is not None:
            settings["add_bos_token"] = self.adds_bos
        _write(folder / "tokenizer_config.json", settings)
        _write(folder / "special_tokens_map.json", self.named())
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")

    @classmethod
    def from_directory(cls, path: str | Path) -> "Tokenizer":
        """Reads tokenizer.json, BERT's vocab.txt, GPT-2's vocab.json with merges.txt, or a sentencepiece model."""
        from luthier.data.tokenizer_files import read_tokenizer

        return read_tokenizer(Path(path))

    def _start_with_bos(self) -> None:
        if self.bos is None:
            raise ValueError("the tokenizer is said to add a bos token, but names none; set bos_token in tokenizer_config.json")
        bos = self.token(self.bos)
        first = processors.TemplateProcessing(single=[bos, "$A"], pair=[bos, "$A", "$B:1"], special_tokens=[(bos, self.bos)])
        present = self.inner.post_processor
        self.inner.post_processor = first if present is None else processors.Sequence([present, first])  # type: ignore[assignment]


def touching(offsets: Sequence[tuple[int, int]], ranges: Ranges) -> Ranges:
    """The tokens, by their characters, that touch each range. A token of spaces may have lost its characters: its end counts."""
    ends, starts = np.array([end for _, end in offsets], np.int64), np.array([start for start, _ in offsets], np.int64)
    found, before = [], 0
    for start, stop in ranges:
        first = int(np.searchsorted(ends, start, side="right"))
        after = int(np.searchsorted(np.where(ends == starts, starts - 1, starts), stop, side="left"))
        found.append((max(first, before), max(after, first, before)))
        before = found[-1][1]
    return found


def cut_longest(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each of two texts stay in `room`: the longer one is cut first, both to one half when both are longer."""
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    longer = room - shorter
    return (shorter, longer) if first <= second else (longer, shorter)


def _write(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
