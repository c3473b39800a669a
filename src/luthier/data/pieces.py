"""A sentencepiece model as a `tokenizers` tokenizer. Kudo and Richardson 2018, arXiv:1808.06226; fields of sentencepiece_model.proto.

The file is a protocol buffer; the three kinds of field used here (number, bytes, float) are read by hand, so that protobuf is not needed.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece.Type
SPACE = "\u2581"  # the lower block that stands for a space


@dataclass(frozen=True)
class Pieces:
    """What a sentencepiece model says: pieces with scores and types, and how text is normalised before."""

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    bpe: bool = False  # else unigram
    unk: int = 0
    bos: int | None = 1
    eos: int | None = 2
    pad: int | None = None
    charsmap: bytes = b""
    dummy_prefix: bool = True
    collapse_spaces: bool = True


def read_pieces(path: Path) -> Pieces:
    """Parses a tokenizer.model / spiece.model file."""
    pieces, trainer, normalizer = [], {}, {}
    try:
        for field, value in _fields(path.read_bytes()):
            if field == 1:
                pieces.append({1: b"", 2: 0.0, 3: NORMAL, **dict(_fields(value))})
            elif field == 2:
                trainer = dict(_fields(value))
            elif field == 3:
                normalizer = dict(_fields(value))
        names = tuple(piece[1].decode("utf-8") for piece in pieces)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{path}: not a sentencepiece model, or cut short ({error}); fetch the file again") from error
    if not pieces:
        raise ValueError(f"{path}: a sentencepiece model without pieces; fetch the file again")
    if trainer.get(3, 1) not in (1, 2):
        raise ValueError(f"{path}: sentencepiece model type {trainer[3]} (word or char); only unigram and BPE are read")
    return Pieces(
        pieces=names,
        scores=tuple(piece[2] for piece in pieces),
        types=tuple(piece[3] for piece in pieces),
        bpe=trainer.get(3, 1) == 2,
        unk=_signed(trainer.get(40, 0)) or 0,
        bos=_signed(trainer.get(41, 1)),
        eos=_signed(trainer.get(42, 2)),
        pad=_signed(trainer.get(43, -1)),
        charsmap=normalizer.get(2, b""),
        dummy_prefix=bool(normalizer.get(3, 1)),
        collapse_spaces=bool(normalizer.get(4, 1)),
    )


def build(model: Pieces) -> tokenizers.Tokenizer:
    """The same ids as sentencepiece gives (without bos and eos)."""
    vocab = {piece: id for id, piece in enumerate(model.pieces)}
    bytes_known = BYTE in model.types
    if model.bpe:
        unknown = model.pieces[model.unk]
        inner = tokenizers.Tokenizer(models.BPE(vocab, merges(model), unk_token=unknown, fuse_unk=True, byte_fallback=bytes_known))
    else:
        inner = tokenizers.Tokenizer(models.Unigram(list(zip(model.pieces, model.scores, strict=True)), model.unk, bytes_known))
    inner.normalizer = normalizers.Sequence(list(_normalise(model)))  # type: ignore[assignment]
    if not model.bpe:
        inner.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")  # type: ignore[assignment]  # pieces never cross a word's start
    inner.decoder = decoders.Sequence(list(_decode(model, bytes_known)))  # type: ignore[assignment]
    inner.add_special_tokens([AddedToken(p, normalized=False, special=True) for p in _of(model, UNKNOWN, CONTROL)])
    inner.add_tokens([AddedToken(p, normalized=False) for p in _of(model, USER_DEFINED)])
    return inner


def merges(model: Pieces) -> list[tuple[str, str]]:
    """The merges a BPE piece list stands for: every split of a piece into two known ones, best score first."""
    ids = {
        piece: id for id, (piece, type) in enumerate(zip(model.pieces, model.types, strict=True)) if type in (NORMAL, USER_DEFINED, UNUSED)
    }
    found = []
    for piece, id in ids.items():
        halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        for left, right in halves:
            if left in ids and right in ids and model.types[id] == NORMAL:
                found.append((-model.scores[id], id, ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _normalise(model: Pieces) -> Iterator[normalizers.Normalizer]:
    if model.charsmap:
        yield normalizers.Precompiled(model.charsmap)
    if model.collapse_spaces:
        yield normalizers.Strip(left=True, right=True)
        yield normalizers.Replace(Regex(" {2,}"), " ")
    if model.dummy_prefix:
        yield normalizers.Prepend(" ")
    yield normalizers.Replace(" ", SPACE)


def _decode(model: Pieces, bytes_known: bool) -> Iterator[decoders.Decoder]:
    yield decoders.Replace(SPACE, " ")
    if bytes_known:
        yield decoders.ByteFallback()
    yield decoders.Fuse()
    if model.dummy_prefix:
        yield decoders.Strip(content=" ", left=1)


def _of(model: Pieces, *types: int) -> Sequence[str]:
    return [piece for piece, type in zip(model.pieces, model.types, strict=True) if type in types]


def _signed(value: int) -> int | None:
    value = value - (1 << 64) if value >= 1 << 63 else value
    return value if value >= 0 else None  # -1: the model has none


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) pairs of one protocol-buffer message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        elif key & 7 == 1:
            value, at = struct.unpack_from("<d", data, at)[0], at + 8
        elif key & 7 == 5:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        elif key & 7 == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise IndexError(f"a field of {size} bytes with {len(data) - at} left")
            value, at = data[at : at + size], at + size
        else:
            raise IndexError(f"wire type {key & 7}")
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
