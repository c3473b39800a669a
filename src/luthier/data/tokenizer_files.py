"""Where a tokenizer is read from: the files of a Hugging Face directory, in the order of how much they say."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from luthier.data import pieces
from luthier.data.tokenizer import ROLES, Tokenizer

WANTED = "tokenizer.json, vocab.txt, vocab.json with merges.txt, tokenizer.model or spiece.model"


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a directory, its special tokens taken from tokenizer_config.json, special_tokens_map.json or config.json."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such directory; a tokenizer is read from a directory with {WANTED}")
    settings = read_json(folder / "tokenizer_config.json")
    named = {**_strings(read_json(folder / "special_tokens_map.json")), **_strings(settings)}
    inner, spoken = _inner(folder, settings)
    named = {**spoken, **named}
    _add_missing(inner, settings, named)
    ids = {role: inner.token_to_id(named[f"{role}_token"]) for role in ROLES if f"{role}_token" in named}
    for role, id in _config_ids(read_json(folder / "config.json")).items():
        if ids.get(role) is None and inner.id_to_token(id) is not None:
            ids[role] = id
    tokenizer = Tokenizer(inner, **ids, adds_bos=settings.get("add_bos_token") is True and ids.get("bos") is not None)
    tokenizer.chat_template = _chat_template(folder, settings)
    return tokenizer


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} when the file is missing."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON object was expected, found a {type(value).__name__}")
    return value


def _inner(folder: Path, settings: dict) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """The tokenizer, and the special tokens its file alone tells."""
    if (folder / "tokenizer.json").exists():
        return _from_json(folder / "tokenizer.json"), {}
    if (folder / "vocab.txt").exists():
        return _from_wordpieces(folder / "vocab.txt", settings)
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _from_merges(folder), {}
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        if (folder / name).exists():
            return _from_pieces(folder / name)
    raise FileNotFoundError(f"{folder}: no tokenizer here; expected {WANTED}")


def _from_json(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{path}: not a tokenizer file, or cut short ({error}); fetch the file again") from error


def _from_wordpieces(path: Path, settings: dict) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """BERT: Devlin et al. 2018; the same steps as its reference tokenizer."""
    words = path.read_text(encoding="utf-8").split("\n")
    vocab = {word.rstrip("\r"): id for id, word in enumerate(words) if word or id < len(words) - 1}
    named = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "cls", "sep", "pad", "mask")}
    named.update({key: value for key, value in _strings(settings).items() if key in named})
    missing = [named[key] for key in ("unk_token", "cls_token", "sep_token") if named[key] not in vocab]
    if missing:
        raise ValueError(f"{path}: {', '.join(missing)} not in the vocabulary; name the special tokens in tokenizer_config.json beside it")
    inner = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=named["unk_token"]))
    inner.normalizer = normalizers.BertNormalizer(  # type: ignore[assignment]
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    inner.decoder = decoders.WordPiece()  # type: ignore[assignment]
    cls, sep = named["cls_token"], named["sep_token"]
    inner.post_processor = processors.BertProcessing((sep, vocab[sep]), (cls, vocab[cls]))  # type: ignore[assignment]
    inner.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in named.values() if token in vocab])
    return inner, named


def _from_merges(folder: Path) -> tokenizers.Tokenizer:
    """GPT-2's byte-level BPE."""
    inner = tokenizers.Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.post_processor = processors.ByteLevel(trim_offsets=False)  # type: ignore[assignment]
    return inner


def _from_pieces(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    model = pieces.read_pieces(path)
    roles = {"unk": model.unk, "bos": model.bos, "eos": model.eos, "pad": model.pad}
    named = {f"{role}_token": model.pieces[id] for role, id in roles.items() if id is not None and id < len(model.pieces)}
    return pieces.build(model), named


def _strings(settings: dict) -> dict[str, str]:
    """bos_token and the like as strings, whether written so or as {"content": ...}."""
    found = {key: settings.get(key) for key in (f"{role}_token" for role in ROLES)}
    plain = {key: value.get("content") if isinstance(value, dict) else value for key, value in found.items()}
    return {key: value for key, value in plain.items() if isinstance(value, str)}


def _add_missing(inner: tokenizers.Tokenizer, settings: dict, named: dict[str, str]) -> None:
    """Tokens that only tokenizer_config.json lists, in the order of their ids; then special tokens named nowhere else."""
    listed = settings.get("added_tokens_decoder", {})
    for id in sorted(listed, key=int):
        entry = listed[id]
        if inner.token_to_id(entry["content"]) is None:
            keep = ("single_word", "lstrip", "rstrip", "normalized", "special")
            inner.add_tokens([AddedToken(entry["content"], **{key: entry[key] for key in keep if key in entry})])
    known = {token.content for token in inner.get_added_tokens_decoder().values()}
    fresh = [token for token in dict.fromkeys(named.values()) if token not in known]
    inner.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in fresh])


def _config_ids(config: dict) -> dict[str, int]:
    """bos_token_id and the like of config.json; of several end tokens the first."""
    ids = {role: config.get(f"{role}_token_id") for role in ROLES}
    first = {role: id[0] if isinstance(id, list) and id else id for role, id in ids.items()}
    return {role: id for role, id in first.items() if isinstance(id, int)}


def _chat_template(folder: Path, settings: dict) -> str | None:
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    stored = settings.get("chat_template")
    if isinstance(stored, list):  # several by name: [{"name": "default", "template": "..."}, ...]
        by_name = {entry.get("name"): entry.get("template") for entry in stored}
        stored = by_name.get("default", next(iter(by_name.values()), None))
    return stored if isinstance(stored, str) else None
