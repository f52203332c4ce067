"""Progress on the screen: a bar on a terminal, plain lines elsewhere; nothing once the terminal is gone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from tqdm import tqdm

from pipeline.track.tracker import Row

SECONDS_BETWEEN_LINES = 5.0


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line, on stderr unless said otherwise; if nobody reads it any more, the work goes on."""
    stream = stream or sys.stderr
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # Python would try again at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Console:
    """Shows loss, tokens per second and time left. The run has `steps` steps and continues at `step`."""

    def __init__(self, steps: int, step: int) -> None:
        self._steps = steps
        self._first = step
        self._started = self._last_line = time.monotonic()
        self._val_loss: float | None = None
        self._loss: float | None = None
        self._gone = False
        self._bar = tqdm(
            total=steps,
            initial=step,
            unit="step",
            desc="train",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def log(self, row: Row) -> None:
        step, val_loss, speed = int(row["step"] or 0), row.get("val_loss"), row.get("tokens_per_second")
        self._val_loss = val_loss if val_loss is not None else self._val_loss
        self._loss = row.get("train_loss") or self._loss
        parts = [f"loss {self._loss:.4f}"] if self._loss is not None else []
        parts += [f"val {self._val_loss:.4f}"] if self._val_loss is not None else []
        parts += [f"{speed:,.0f} tok/s"] if speed else []
        if not self._bar.disable:
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._attempt(lambda: self._bar.update(step - self._bar.n))
        elif val_loss is not None or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.note(f"step {step:,}/{self._steps:,}  {'  '.join(parts)}{self._time_left(step)}")

    def note(self, text: str) -> None:
        """Print a line that stays on the screen, above the progress bar."""

        def write() -> None:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()

        self._attempt(write)

    def close(self) -> None:
        self._attempt(self._bar.close)

    def _attempt(self, show: Callable[[], object]) -> None:
        """Show something, or from now on nothing: a run goes on when its terminal or reader is gone."""
        if not self._gone:
            try:
                show()
            except (OSError, ValueError):  # ValueError: the stream is closed
                self._gone = True

    def _time_left(self, step: int) -> str:
        if step == self._first or step == self._steps:
            return ""
        seconds = (time.monotonic() - self._started) / (step - self._first) * (self._steps - step)
        return f"  {tqdm.format_interval(seconds)} left"
