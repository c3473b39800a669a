"""Ctrl-C and SIGTERM: the step in hand is finished, a checkpoint is written, and the run says how to go on. No torch here."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The run was stopped from outside after a whole step; its message says how to resume. Exit code 130."""


@dataclass
class Stop:
    """Whether someone asked the run to stop."""

    asked: bool = False


@contextmanager
def watched(numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[Stop]:
    """Turns the first signal into a wish that the loop reads after each step; a second one stops at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # Python sets handlers in the main thread only
        yield stop
        return
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        restore()

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()
