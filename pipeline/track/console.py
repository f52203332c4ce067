"""Progress on the screen: a line in place on a terminal, plain lines elsewhere; nothing once it is gone."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TextIO

from pipeline.storage.machine import decimal
from pipeline.track.tracker import Row

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_DRAWINGS = 0.5  # of the line on a terminal
LONGEST_BAR, SHORTEST_BAR = 40, 4
EIGHTHS = " ▏▎▍▌▋▊▉"


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line, on stderr unless said otherwise; if nobody reads it any more, the work goes on."""
    stream = stream or sys.stderr
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # Python would try again at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@dataclass
class Progress:
    """How far a run is; None for what is not known yet."""

    step: int
    steps: int
    loss: float | None = None
    val_loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None

    def take(self, row: Row) -> None:
        """Take the figures of a row of the log."""
        self.step = int(row["step"] or 0)
        for name, column in (
            ("loss", "train_loss"),
            ("val_loss", "val_loss"),
            ("tokens_per_second", "tokens_per_second"),
        ):
            if (value := row.get(column)) is not None:
                setattr(self, name, value)

    def figures(self) -> str:
        """Losses, speed and time left, separated by two spaces."""
        parts = [
            self.loss is not None and f"loss {self.loss:.4f}",
            self.val_loss is not None and f"val {self.val_loss:.4f}",
            self.tokens_per_second and f"{decimal(self.tokens_per_second)} tok/s",
            self.seconds_left is not None and f"{duration(self.seconds_left)} left",
        ]
        return "  ".join(part for part in parts if part)

    def line(self, width: int, unicode: bool = True) -> str:
        """A bar and the figures in less than `width` characters; the steps in numbers if there is room."""
        share = self.step / self.steps if self.steps else 1.0
        figures = self.figures()
        for head in (f"step {self.step:,}/{self.steps:,}", f"{share:4.0%}"):
            room = width - 1 - len(head) - len(figures) - 3
            if room >= SHORTEST_BAR:
                return f"{head} {_bar(share, min(room, LONGEST_BAR), unicode)}  {figures}"
        return f"{share:4.0%}  {figures}"[: width - 1]


def _bar(share: float, width: int, unicode: bool) -> str:
    if not unicode:
        return ("#" * round(share * width)).ljust(width, ".")
    whole, eighths = divmod(round(share * width * 8), 8)
    return f"{'█' * whole}{EIGHTHS[eighths] if eighths else ''}".ljust(width, "░")


def duration(seconds: float) -> str:
    """A time such as 01:10, 2:30:00 or 3d 04:00:00."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"


def columns(stream: TextIO) -> int:
    """The width of the terminal that a stream writes to; 80 if it is no terminal."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def writes_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().startswith("utf")


class Console:
    """Shows loss, tokens per second and time left. The run has `steps` steps and continues at `step`.

    `tokens` are those of a step, to know the speed before the first row does. On a terminal a thread draws
    the line twice a second, because a step may take long.
    """

    def __init__(self, steps: int, step: int, tokens: int | None = None) -> None:
        self._progress = Progress(step, steps)
        self._tokens = tokens
        self._first = step
        self._started = self._last_line = time.monotonic()
        self._gone = False
        self._terminal = sys.stderr.isatty()
        self._drawing = threading.RLock()
        self._closed = threading.Event()
        self._drawer = threading.Thread(target=self._draw_again_and_again, daemon=True)
        if self._terminal:
            self._drawer.start()

    def tick(self, step: int) -> None:
        """Another step was taken. This is called after each, and waits for nothing."""
        self._progress.step = step
        if not self._terminal and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._print()

    def log(self, row: Row) -> None:
        self._progress.take(row)
        due = row.get("val_loss") is not None or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES
        if not self._terminal and due:
            self._print()

    def note(self, text: str) -> None:
        """Print a line that stays on the screen, above the progress."""
        self._write(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")

    def close(self) -> None:
        self._closed.set()
        if self._terminal:
            self._drawer.join()
            self._draw()
            self._write("\n")

    def _print(self) -> None:
        self._last_line = time.monotonic()
        progress = self._at_this_moment()
        self.note(f"step {progress.step:,}/{progress.steps:,}  {progress.figures()}")

    def _draw_again_and_again(self) -> None:
        while not self._closed.wait(SECONDS_BETWEEN_DRAWINGS):
            self._draw()

    def _draw(self) -> None:
        line = self._at_this_moment().line(columns(sys.stderr), writes_unicode(sys.stderr))
        self._write(f"\r{line}\x1b[K")

    def _at_this_moment(self) -> Progress:
        """The progress, with the time that is left if steps take as long as they did so far."""
        now = replace(self._progress)
        seconds, done = time.monotonic() - self._started, now.step - self._first
        if done > 0 and now.step < now.steps:
            now.seconds_left = seconds / done * (now.steps - now.step)
        if done > 0 and self._tokens and now.tokens_per_second is None:
            now.tokens_per_second = done * self._tokens / max(seconds, 1e-9)
        return now

    def _write(self, text: str) -> None:
        """Write, or from now on nothing: a run goes on when its terminal or reader is gone."""
        with self._drawing:
            if not self._gone:
                try:
                    sys.stderr.write(text)
                    sys.stderr.flush()
                except (OSError, ValueError):  # ValueError: the stream is closed
                    self._gone = True
