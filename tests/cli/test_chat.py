"""luthier chat and luthier generate: a conversation in a pipe, in a terminal, and what Ctrl-C and Ctrl-D do."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import luthier.cli.chat as verb
from luthier.cli import main
from luthier.cli._talk import Talk, open_talk
from luthier.core.reader import Sampling
from luthier.tuning._tune import tune
from tiny import tiny_chat

runner = CliRunner()
CHOICES = {"max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model with one adapter, saved."""
    place = tmp_path_factory.mktemp("chat")
    model = tiny_chat(positions=100_000)
    model.net.heads["lm"].out.weight.data[257] = 0  # never the likeliest: an answer at temperature 0 goes on until it is stopped
    model.save(place / "model")
    model.source = str(place / "model")
    attached = tune(model, "lora", rank=2)
    for name, parameter in attached.parameters.items():
        parameter.data.normal_(std=0.7 if "a_RI" in name else 2.0)
    model.save_adapter(place / "adapter")
    return place


def opened(folder: Path) -> Talk:
    return open_talk(str(folder / "model"), None, "", "", dict(CHOICES), None, False, "")


def test_a_conversation_through_the_cache_is_what_it_is_without(folder):
    talk, plain = opened(folder), opened(folder)
    for question in ("hello", "and then?", "why"):
        answer = "".join(talk.answer(question))
        plain.memory.clear()
        assert answer == "".join(plain.answer(question))
    assert talk.turns == plain.turns and len(talk.turns) >= 4
    talk.reset()
    assert "".join(talk.answer("hello")) == plain.turns[1]["content"]


def test_an_adapter_goes_to_work_and_off_again_and_both_sides_are_compared(folder):
    talk = opened(folder)
    with pytest.raises(ValueError, match="no adapter to compare with"):
        list(talk.compare("hello"))
    base = "".join(talk.answer("hello"))
    talk.reset()
    assert talk.adapt(str(folder / "adapter")).endswith(f"with {folder / 'adapter'}")
    tuned = "".join(talk.answer("hello"))
    talk.reset()
    assert tuned != base
    for question in ("hello", ""):
        assert [text for _, text in talk.compare(question)] == [base, tuned]
        if question:
            list(talk.answer("hello"))
    assert len(talk.turns) == 2  # comparing leaves no trace
    talk.reset()
    talk.adapt("off")
    assert "".join(talk.answer("hello")) == base
    with pytest.raises(FileNotFoundError, match="no such folder"):
        talk.adapt(str(folder / "nowhere"))
    assert "".join(talk.answer("more"))


def test_a_question_that_does_not_fit_is_not_remembered(folder):
    talk = opened(folder)
    talk.sampling = Sampling(max_tokens=99_999)
    with pytest.raises(ValueError, match="positions"):
        list(talk.answer("hello"))
    assert talk.turns == []


def test_a_pipe_gets_plain_lines(folder):
    words = ["chat", str(folder / "model"), "--max-tokens", "5", "--seed", "1"]
    typed = "hello\n/system Be brief.\n/adapter\n/nonsense\n/reset\nagain\n/quit\nnever\n"
    result = runner.invoke(main.app, words, input=typed)
    assert result.exit_code == 0, result.output
    assert "System message: Be brief." in result.output and "no command '/nonsense'" in result.output
    assert "\x1b" not in result.stdout and "> " not in result.stdout.splitlines()[0][:2]
    assert result.stdout == runner.invoke(main.app, words, input=typed).stdout


def test_the_better_of_two_answers_is_kept_as_a_preference_and_the_conversation_goes_on_from_it(folder, tmp_path):
    file = tmp_path / "preferences.jsonl"
    words = ["chat", str(folder / "model"), "--max-tokens", "6", "--seed", "1", "--temperature", "1.5", "--collect", str(file)]
    result = runner.invoke(main.app, words, input="/system Be brief.\nhello\n2\nand then?\n\nwhy\n1\n")
    assert result.exit_code == 0, result.output
    shown = re.findall(r"^\[([12])\] ?(.*(?:\n(?!\[|Neither|$).*)*)", result.stdout, re.MULTILINE)
    assert len(shown) == 6 and result.stdout.count("Neither") == 1
    first, last = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    hello = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert first["prompt"] == hello and first["chosen"] != first["rejected"]
    assert last["prompt"] == [*hello, *first["chosen"], {"role": "user", "content": "why"}]  # what was refused left no trace
    again = runner.invoke(main.app, words, input="hello\n1\n")
    assert again.exit_code == 0 and len(file.read_text(encoding="utf-8").splitlines()) == 3  # added to, never written over


def test_preferences_are_not_gathered_where_answers_cannot_differ_or_the_file_cannot_be_written(folder, tmp_path):
    words = ["chat", str(folder / "model"), "--collect"]
    greedy = runner.invoke(main.app, [*words, str(tmp_path / "p.jsonl"), "--temperature", "0"], input="hello\n")
    assert greedy.exit_code == 2 and "choose a temperature above 0" in greedy.output and not (tmp_path / "p.jsonl").exists()
    nowhere = runner.invoke(main.app, [*words, str(tmp_path / "no" / "p.jsonl")], input="hello\n")
    assert nowhere.exit_code == 2 and "p.jsonl" in nowhere.output


def test_control_characters_of_an_answer_do_not_reach_the_terminal():
    assert verb.shown("a\x1b[2Jb\x9bc\rd\n\té琴") == "a[2Jbcd\n\té琴"


def test_generate_writes_a_text_for_each_prompt(folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    words = [
        "generate",
        str(folder / "model"),
        "--prompt",
        "zero",
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--max-tokens",
        "4",
        "--seed",
        "3",
    ]
    result = runner.invoke(main.app, [*words, "--json", "--samples", "2", "--batch", "2"])
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["zero", "zero", "one", "one", "two", "two"]
    assert runner.invoke(main.app, [*words, "--chat"]).stdout.count("> ") >= 3
    assert runner.invoke(main.app, ["generate", str(folder / "model")]).exit_code == 2
    assert "top_p=2.0 must be" in runner.invoke(main.app, [*words, "--top-p", "2"]).output


class Terminal:
    """The command in a pseudo-terminal, typed at and read from."""

    def __init__(self, *words: str) -> None:
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "luthier.cli.main", *words]
        settings = os.environ | {"TERM": "xterm", "OMP_NUM_THREADS": "1", "COLUMNS": "90"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=settings, start_new_session=True, preexec_fn=_own
        )
        os.close(slave)
        self.seen = ""

    def until(self, pattern: str, seconds: float = 90) -> str:
        """What is written until the pattern comes; it is then forgotten."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.master], [], [], left)[0]:
                raise AssertionError(f"{pattern!r} did not come within {seconds} s; there is {self.seen[-500:]!r}")
            try:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
            except OSError:  # the other side has closed
                raise AssertionError(f"ended without {pattern!r}: {self.seen[-500:]!r}") from None
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def type(self, text: str) -> None:
        time.sleep(0.5)  # a key between the prompt and the line editor's start would go to neither
        os.write(self.master, text.encode())


def _own() -> None:
    """Make the pseudo-terminal the child's own, so that Ctrl-C reaches it."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_in_a_terminal_ctrl_c_stops_the_answer_only_and_ctrl_d_leaves(folder):
    terminal = Terminal("chat", str(folder / "model"), "--max-tokens", "60000", "--temperature", "0")
    try:
        terminal.until("/help lists the commands")
        terminal.until("> ")
        terminal.type("a half-typed line\x03")
        terminal.until("Ctrl-D or /quit leaves")
        terminal.until("> ")
        terminal.type("go on\n")
        terminal.until(r"go on\r\n[^\r]")  # the answer has begun
        terminal.type("\x03")
        terminal.until(r"\[stopped\]")
        terminal.until("> ")
        terminal.type(f"/adapter {folder / 'adapter'}\n")
        terminal.until("with .*adapter")
        terminal.until("> ")
        terminal.type("/reset\n")
        terminal.until("The conversation is forgotten")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        if terminal.process.poll() is None:
            terminal.process.send_signal(signal.SIGKILL)
            terminal.process.wait()
        os.close(terminal.master)


@pytest.mark.slow
def test_in_a_terminal_two_answers_stand_side_by_side(folder):
    terminal = Terminal("chat", str(folder / "model"), "--adapter", str(folder / "adapter"), "--max-tokens", "20", "--seed", "1")
    try:
        terminal.until("> ")
        terminal.type("/compare hello\n")
        shown = terminal.until("└.*┘")
        assert "base is writing" in shown and "│" in shown
        terminal.type("/quit\n")
        assert terminal.process.wait(30) == 0
    finally:
        if terminal.process.poll() is None:
            terminal.process.send_signal(signal.SIGKILL)
            terminal.process.wait()
        os.close(terminal.master)
