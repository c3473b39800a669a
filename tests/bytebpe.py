"""A small byte-level BPE for tests, and the strings tokenizers are compared on."""

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

TEXTS = [
    "Hello, world!",
    "",
    " ",
    "  two  spaces, and a third   ",
    "\n\n\nlines\n\n and\ttabs\t\t",
    "你好，世界！这是一个测试。",
    "繁體中文與简体，日本語、한국어",
    "emoji 🎉👩‍👩‍👧‍👦 🇨🇳 ok",
    "def f(x: int) -> int:\n    return x ** 2  # 平方\n",
    "naïve café Ünïcödé e\u0301 ﬁ",
    "1234567 3.14159 1e-4 0x1F",
    "it's we'll I'd can't DON'T",
    "\u200bzero\u00a0width\u3000wide",
    "a" * 300,
    "\x00\x07 control \x1c",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "[CLS] not [SEP] special? [MASK]",
    '{"json": [1, 2, {"k": "v"}]}',
    "https://example.org/a?b=c&d=%20",
]


def roberta_like() -> tokenizers.Tokenizer:
    """A byte-level BPE learnt from TEXTS, with <s> and </s> around texts and trimmed offsets."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    specials = ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]
    inner.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )  # type: ignore[call-arg]
    inner.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=True, add_prefix_space=False)  # type: ignore[assignment]
    return inner
