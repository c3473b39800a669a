"""Text out of token ids as they come: never half a character, never a stop string or the beginning of one."""

from collections.abc import Sequence

from luthier.data.tokenizer import Tokenizer

BROKEN = "\ufffd"  # what a decoder writes for bytes that are not yet a character
LONGEST = 8  # so many tokens at most are waited for: a broken character for good is then written as it is


class Writer:
    """`feed` takes a token and gives the text that is certain now; `flush` the rest; `ended` after a stop string.

    before: ids in front of the first token, so that a space which the tokenizer puts between words is not lost.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(text for text in stop if text)
        before = list(before)[-LONGEST:]
        self.ids = [] if BROKEN in tokenizer.decode(before) else before
        self.done = len(self.ids)  # of `ids`, so many have been turned into text
        self.held = ""  # text that may yet turn out to begin a stop string
        self.ended = False

    def feed(self, token: int) -> str:
        if self.ended:
            return ""
        self.ids.append(token)
        text = self._fresh()
        if text.endswith(BROKEN) and len(self.ids) - self.done < LONGEST:
            return ""
        self.ids, self.done = self.ids[self.done :], len(self.ids) - self.done
        return self._certain(self.held + text)

    def flush(self) -> str:
        """What is left when no more tokens come."""
        rest = "" if self.ended else self._certain(self.held + self._fresh()) + self.held
        self.ids, self.done, self.held, self.ended = [], 0, "", True
        return rest

    def _fresh(self) -> str:
        """The text of the ids not yet written; those written just before give them their context."""
        return self.tokenizer.decode(self.ids)[len(self.tokenizer.decode(self.ids[: self.done])) :]

    def _certain(self, text: str) -> str:
        found = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:
            self.held, self.ended = "", True
            return text[: min(found)]
        held = max((n for stop in self.stop for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])), default=0)
        self.held = text[len(text) - held :]
        return text[: len(text) - held]
