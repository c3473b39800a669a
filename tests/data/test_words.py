"""Remembered words under two threads: one tokenises ahead while another evaluates."""

from tokenizers import Tokenizer, models, pre_tokenizers

from luthier.data.words import Words


class Interrupted:
    """An inner tokenizer during whose work, once, another thread finds the memory full and begins afresh."""

    def __init__(self, inner: Tokenizer):
        self.inner, self.words, self.waiting = inner, Words(self), True  # type: ignore[arg-type]

    def encode_batch_fast(self, texts, add_special_tokens):
        if self.waiting and self.words.pieces:
            self.waiting, self.words.room = False, -1
            self.words.encode_batch(["something else again"])
        return self.inner.encode_batch_fast(texts, add_special_tokens=add_special_tokens)


def test_a_memory_emptied_by_another_thread_changes_nothing():
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    interrupted = Interrupted(inner)
    texts = ["the cat sat on a mat", "the cat ran over the town"]
    wanted = [inner.encode(text).ids for text in texts]
    assert [interrupted.words.encode_batch([text])[0] for text in texts] == wanted
    assert not interrupted.waiting
