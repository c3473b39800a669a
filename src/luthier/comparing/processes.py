"""Runs in processes of their own, each with its base; the folders are the seam: what a run was is read from there.

A process that dies takes the run that it was at down, and another one goes on with the rest.
"""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from queue import Empty
from typing import Any

from luthier.comparing.turns import Ended, Job, Stepped, Turns
from luthier.training.stop import Stop, watched

WAIT_S = 0.2


@dataclass
class Processes:
    """As Turns, in `workers` processes; together: runs that take turns in each (0: one)."""

    stop: Stop
    workers: int
    stepped: Stepped
    ended: Ended
    at: dict[int, str] = field(default_factory=dict)  # process -> the run it is at

    def go(self, jobs: Sequence[Job]) -> None:
        """Does all of them, or until somebody asks to stop; those at work then have a checkpoint each."""
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        tasks, news = context.Queue(), context.Queue()
        for job in jobs:
            tasks.put(job)
        left, working = {job.name for job in jobs}, []
        try:
            while left and not self.stop.asked:
                while len(working) < min(self.workers, len(left)):
                    working.append(context.Process(target=serve, args=(tasks, news), daemon=True))
                    working[-1].start()
                self.listen(news, left)
                for process in [each for each in working if not each.is_alive()]:
                    working.remove(process)
                    self.listen(news, left)
                    self.lost(process, left)
        finally:
            end(working, self.stop.asked)
            while self.listen(news, left, 0.0):
                pass
            tasks.cancel_join_thread()

    def listen(self, news: Any, left: set[str], wait_s: float = WAIT_S) -> bool:
        """One piece of news, if there is one."""
        with suppress(Empty):
            kind, process, name, told = news.get(timeout=wait_s) if wait_s else news.get_nowait()
            if kind == "begun":
                self.at[process] = name
            elif kind == "step":
                self.stepped(name, told)
            else:
                left.discard(name)
                self.at.pop(process, None)
                self.ended(name, told)
            return True
        return False

    def lost(self, process: BaseProcess, left: set[str]) -> None:
        name = self.at.pop(process.pid or 0, None)
        if name in left:
            left.discard(name)
            self.ended(name, f"the process that ran it died (exit code {process.exitcode}): no memory, or it was killed")


def end(working: Sequence[BaseProcess], asked: bool) -> None:
    """Idle processes end at once; those at a run write a checkpoint first, where the end was asked for."""
    for process in working:
        if process.is_alive():
            process.terminate() if asked else process.kill()
    for process in working:
        process.join()


def serve(tasks: Any, news: Any) -> None:
    """What a process does: one run after the other, over one base."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the first process passes it on
    with watched((signal.SIGTERM,)) as stop:
        here = os.getpid()
        turns = Turns(
            stop,
            1,
            lambda name, line: news.put(("step", here, name, line)),
            lambda name, error: news.put(("ended", here, name, error)),
        )
        while not stop.asked:
            with suppress(Empty):
                job = tasks.get(timeout=WAIT_S)
                news.put(("begun", here, job.name, None))
                turns.go([job])
        news.close()
        news.join_thread()
