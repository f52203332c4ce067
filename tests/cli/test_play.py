"""Writing with a model through a pseudo-terminal, and through a pipe."""

from __future__ import annotations

import math
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli.play import painted, printable
from tests import tiny, zeroshot
from tests.family import RECURRENT

ENVIRONMENT = {"PYTHONPATH": str(tiny.ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    model = zeroshot.save_model(tmp_path / "model", zeroshot.bpe(), **RECURRENT)
    program = [sys.executable, "-m", "pipeline.cli.main", "play", "--model", str(model)]
    return [*program, "-S", "sample.max_new_tokens=10", "-S", "sample.temperature=1.0"]


class Terminal:
    """A process in a pseudo-terminal."""

    def __init__(self, command: list[str], folder: Path, **environment: str) -> None:
        self.process, self._file = pty.fork()
        if self.process == 0:
            os.chdir(folder)
            os.execve(command[0], command, {**ENVIRONMENT, "TERM": "xterm-256color", **environment})
        self.shown = ""

    def write(self, text: str) -> None:
        os.write(self._file, text.encode())

    def until(self, pattern: str, after: int = 0) -> re.Match[str]:
        """Wait for something on the screen."""
        end = time.monotonic() + 60
        while (found := re.search(pattern, self.shown[after:])) is None:
            assert select.select([self._file], [], [], end - time.monotonic())[0], self.shown
            self.shown += os.read(self._file, 4096).decode(errors="replace")
        return found

    def status(self) -> int:
        _, status = os.waitpid(self.process, 0)
        os.close(self._file)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def terminal(command: list[str], tmp_path: Path) -> Iterator[Terminal]:
    yield Terminal(command, tmp_path)


def test_a_conversation(terminal: Terminal) -> None:
    terminal.until(r"Ctrl-D ends\.\r\n.*> ")
    terminal.write("The ship\n")
    terminal.until(r"The ship\r\nThe ship\x1b\[38;5;16;48;5;\d+m[\s\S]*> $")
    at = len(terminal.shown)
    terminal.write(":tokens=4000\n")
    terminal.until(r"max_new_tokens=4000", at)
    at = len(terminal.shown)
    terminal.write("The ship\n")
    terminal.until(r"(\x1b\[0m[\s\S]*){20}", at)
    terminal.write("\x03")
    terminal.until(r"\r\n\S*> $", at)
    at = len(terminal.shown)
    terminal.write("a line that is dropped")
    terminal.until(r"dropped", at)
    terminal.write("\x03")
    terminal.until(r"dropped\S*\r\n\S*> $", at)
    terminal.write(":depth=1\n")
    terminal.until(r"recurrent_depth=1\b", at)
    terminal.write("\x04")
    assert terminal.status() == 0


def test_a_pipe(command: list[str], tmp_path: Path) -> None:
    lines = [
        "The ship",
        "The ship",
        ":seed=2",
        "The ship",
        ":depth=1",
        "The ship",
        ":seed=-1",
        ":speed=1",
        "FILE:a\\nb",  # is a text
    ]
    ended = subprocess.run(
        command,
        input="\n".join(lines),
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in ended.stdout
    once, again, *other, last = re.split(
        r"\n(?=The ship|FILE:)", re.sub(r"\n?temperature=.*", "", ended.stdout)
    )
    assert once == again and once not in other and len(set(other)) == 2
    assert last.startswith("FILE:a\nb")
    errors = ended.stderr.splitlines()
    assert len(errors) == 2
    assert "sample.seed = -1" in errors[0] and errors[1].startswith("error: :speed=1: write :name=value")


def test_a_line_that_is_no_utf8(command: list[str], tmp_path: Path) -> None:
    strict = {**ENVIRONMENT, "PYTHONIOENCODING": "utf-8:strict"}
    ended = subprocess.run(command, input=b"\xff\nThe ship", cwd=tmp_path, env=strict, capture_output=True)
    assert ended.stdout.startswith(b"The ship") and ended.returncode == 0
    assert ended.stderr.startswith(b"error: the text: not UTF-8") and ended.stderr.count(b"\n") == 1


def test_colors_tell_the_probability_and_what_a_terminal_would_act_on_is_not_sent() -> None:
    colors = [painted("a", math.log(probability)) for probability in (0.01, 0.05, 0.2, 0.5, 0.9)]
    assert len(set(colors)) == 5
    assert all(color.endswith("ma\x1b[0m") for color in colors)
    red = colors[0].partition("a")[0]
    assert painted(printable("\n\x1b[2J\t\r"), math.log(0.01)) == f"\n{red}\ufffd[2J\t\ufffd\x1b[0m"


def test_colors_can_be_turned_off(command: list[str], tmp_path: Path) -> None:
    terminal = Terminal(command, tmp_path, NO_COLOR="1")
    terminal.until(r"Ctrl-D ends\.\r\n.*> ")
    terminal.write("The ship\n")
    terminal.until(r"The ship\r\nThe ship[\s\S]*> ")
    assert "48;5" not in terminal.shown
    terminal.write("\x04")
    assert terminal.status() == 0
