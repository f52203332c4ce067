"""Progress is readable on a terminal of any width and off it, and never stops a run."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import sys
import termios
import time
from collections.abc import Callable

import pytest

from pipeline.track import console
from pipeline.track.console import Console, Progress, duration
from tests.track.test_track import row


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Console(steps=2000, step=1000)
    progress.log(row(1000, val_loss=3.5))
    progress.log(row(1200))  # the last line was just now
    progress.log(row(1500, val_loss=3.25))
    progress.note("saved")
    progress.log(row(2000, val_loss=3.0))
    progress.close()
    out, err = capsys.readouterr()
    assert not out
    assert "\r" not in err and "\x1b" not in err
    lines = err.splitlines()
    assert lines[0] == "step 1,000/2,000  loss 2.5000  val 3.5000  12.3k tok/s"
    assert lines[1] == "step 1,500/2,000  loss 2.5000  val 3.2500  12.3k tok/s  00:00 left"
    assert lines[2:] == ["saved", "step 2,000/2,000  loss 2.5000  val 3.0000  12.3k tok/s"]


@pytest.mark.parametrize("rows", [True, False])
def test_plain_lines_keep_coming(
    rows: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between evaluations, and between the rows of a long log_interval."""
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    progress = Console(steps=100, step=0, tokens=640)
    for step in range(1, 100):
        clock[0] = float(step)
        progress.log(row(step)) if rows else progress.tick(step)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/100" for step in range(6, 100, 6)]
    assert lines[4].endswith("01:10 left")  # 30 steps took 30 seconds, 70 remain
    assert ("12.3k tok/s" if rows else "640 tok/s") in lines[4]


def test_the_line_fits_and_gives_up_the_bar_last() -> None:
    progress = Progress(123_456, 600_000, 3.1416, 3.2416, 161_000.0, 4 * 86400 + 3661)
    for width in range(20, 200):
        line = progress.line(width)
        assert len(line) < width
        assert ("░" in line) == (width >= 65) and ("123,456/600,000" in line) == (width >= 81), width
    assert progress.line(100, unicode=False).isascii()
    short = Progress(630, 1400, 4.1234, 4.2345, 12_345.0, 70).line(60)
    assert short == " 45% █▊░░  loss 4.1234  val 4.2345  12.3k tok/s  01:10 left"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "00:00"), (59.6, "01:00"), (3599, "59:59"), (9000, "2:30:00"), (273_601, "3d 04:00:01")],
)
def test_a_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_the_line_moves_on_a_terminal_of_60_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also during one long step: nothing is called meanwhile."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    os.set_blocking(ours, False)
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(console, "SECONDS_BETWEEN_DRAWINGS", 0.01)
        progress = Console(steps=100, step=0)
        progress.log(row(10, val_loss=3.5))
        progress.tick(47)
        shown = _read_until(ours, lambda text: text.count("47%") >= 3)
        progress.note("saved")
        progress.close()
        shown += _read_until(ours, lambda text: text.endswith("\n"))
    os.close(ours)
    drawn = [part.removesuffix("\x1b[K") for part in shown.split("\r") if part.endswith("\x1b[K")]
    assert all(len(line) < 60 for line in drawn)
    assert {"loss 2.5000", "val 3.5000", "12.3k tok/s", "00:00 left"} <= set(drawn[-1].split("  "))
    assert "\x1b[Ksaved\r\n" in shown and shown.endswith("\r\n")


def _read_until(descriptor: int, enough: Callable[[str], bool]) -> str:
    text, deadline = b"", time.monotonic() + 20
    while not enough(text.decode(errors="ignore")):
        assert time.monotonic() < deadline, text
        try:
            text += os.read(descriptor, 4096)
        except BlockingIOError:
            time.sleep(0.01)
    return text.decode()


def test_a_line_on_a_terminal_of_unknown_width(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Console(steps=100, step=20)
    progress.log(row(20, val_loss=3.5))
    progress.log(row(70))
    progress.close()
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("step 70/100 ####") and last.endswith("\n")
    assert "loss 2.5000  val 3.5000  12.3k tok/s  00:00 left" in last


def test_a_run_goes_on_when_its_terminal_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    for terminal in (False, True):
        stream = Gone()
        monkeypatch.setattr(stream, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Console(steps=100, step=0)
        progress.log(row(10, val_loss=3.5))
        progress.note("saved")
        progress.close()
