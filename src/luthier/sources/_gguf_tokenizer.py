"""The tokenizer of a GGUF file, rebuilt from its metadata.

Two families: byte-level BPE (Radford et al. 2019, section 2.2), whose `pre` names the way text is cut before merging, and
SentencePiece's BPE (Kudo and Richardson 2018, arXiv:1808.06226), whose merges follow from the scores of its pieces.
"""

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

CONTROL, USER, BYTE = 3, 4, 6  # entries of tokenizer.ggml.token_type

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
# What counts as one word before merging. Published with the models: Llama 3, Qwen2, Mistral's Tekken, GPT-4o.
WORDS = {
    "llama3": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}",
    "qwen2": rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}",
    "tekken": rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}",
    "gpt-4o": rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}",
}
# The value of tokenizer.ggml.pre -> how words are cut: one of WORDS, "digits" (each digit alone, then GPT-2's words) or "gpt2".
PRE = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "mpt", "olmo", "jais", "phi-2"), "gpt2"),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "digits"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx", "falcon3", "lfm2"), "llama3"),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"), "qwen2"),
    "tekken": "tekken",
    "gpt-4o": "gpt-4o",
}


def build_tokenizer(metadata: dict[str, Any], file: str) -> Tokenizer:
    kind = metadata.get("tokenizer.ggml.model")
    builders = {"gpt2": byte_level, "llama": sentencepiece}
    if kind not in builders:
        raise ValueError(
            f"{file}: its tokenizer is of the kind {kind!r}; Luthier rebuilds {', '.join(builders)}. Load it with tokenizer: a folder"
        )
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"{file}: its metadata has no list of tokens (tokenizer.ggml.tokens)")
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"{file}: a token stands twice in tokenizer.ggml.tokens; the file is damaged")
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise ValueError(f"{file}: {len(types)} token types for {len(tokens)} tokens; the file is damaged")
    tokenizer = builders[kind](metadata, tokens, types, file)
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    plain = [token for token, kind in zip(tokens, types, strict=True) if kind == USER]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return tokenizer


def byte_level(metadata: dict[str, Any], tokens: list[str], types: list[int], file: str) -> Tokenizer:
    merges, pre = metadata.get("tokenizer.ggml.merges"), metadata.get("tokenizer.ggml.pre", "default")
    if pre not in PRE:
        raise ValueError(
            f"{file}: its tokenizer cuts words in the way {pre!r}, which Luthier does not know; it knows {', '.join(sorted(PRE))}"
        )
    pairs = [tuple(merge.split(" ")) for merge in merges] if isinstance(merges, list) else []
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{file}: its metadata has no list of merges (tokenizer.ggml.merges), or one that is damaged")
    way = PRE[pre]
    try:
        model = models.BPE({token: i for i, token in enumerate(tokens)}, pairs, ignore_merges=way == "llama3")
    except Exception as error:  # tokenizers raises a bare Exception, about a merge whose parts are not in the vocabulary
        raise ValueError(f"{file}: its merges do not fit its tokens ({error}); the file is damaged") from None
    tokenizer = Tokenizer(model)
    cut = [pre_tokenizers.Split(Regex(WORDS[way]), "isolated")] if way in WORDS else []
    cut += [pre_tokenizers.Digits(individual_digits=True)] if way == "digits" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=way not in WORDS)])
    tokenizer.normalizer = normalizers.NFC() if way == "qwen2" and pre != "stablelm2" else None
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece(metadata: dict[str, Any], tokens: list[str], types: list[int], file: str) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ValueError(f"{file}: {len(scores or [])} scores for {len(tokens)} tokens (tokenizer.ggml.scores); the file is damaged")
    vocab = {token: i for i, token in enumerate(tokens)}
    normal = {token for token, kind in zip(tokens, types, strict=True) if kind in (1, USER)}
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == 2), None)
    merges = merges_of(vocab, scores, normal)
    bytes_too = BYTE in types
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=bytes_too))
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    # SentencePiece puts a space before every text, also before one that begins with a space; pre_tokenizers.Metaspace would not.
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer


def merges_of(vocab: dict[str, int], scores: list[float], normal: set[str]) -> list[tuple[str, str]]:
    """Every way of making a piece from two, best score first: SentencePiece merges the pair whose result scores highest."""
    found = []
    for piece in normal:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in normal and right in normal:
                found.append((-scores[vocab[piece]], vocab[left], vocab[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def starts_with_bos(metadata: dict[str, Any]) -> bool:
    """Whether a text begins with bos: as the file says; where it says nothing, SentencePiece and LLaMA 3 do."""
    silent = metadata.get("tokenizer.ggml.model") == "llama" or PRE.get(metadata.get("tokenizer.ggml.pre", "")) == "llama3"
    return bool(metadata.get("tokenizer.ggml.add_bos_token", silent))
