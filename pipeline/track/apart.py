"""Keeps a tracker apart from the training, so that it can neither stop nor slow it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from pipeline.config.errors import one_line
from pipeline.track.tracker import Row, Tracker

WAITING_ROWS = 10_000
SECONDS_TO_FINISH = 15.0


class Apart:
    """Opens a tracker in a thread, and passes rows on to it there.

    Its first failure gives one warning, and it gets no more rows. So does one that hangs, once many rows
    wait for it, or at the end.
    """

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], warn: Callable[[str], None]) -> None:
        self._name = name
        self._open = open_tracker
        self._warn = warn
        self._rows: queue.Queue[Row | None] = queue.Queue(WAITING_ROWS)  # None: that was the last
        self._off = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        self._put(row)

    def close(self) -> None:
        self._put(None)
        if not self._off.is_set():
            self._thread.join(SECONDS_TO_FINISH)
            if self._thread.is_alive():
                self._give_up(f"not finished after {SECONDS_TO_FINISH:.0f} seconds")

    def _put(self, row: Row | None) -> None:
        if self._off.is_set():
            return
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._give_up(f"{WAITING_ROWS:,} rows wait for it")

    def _work(self) -> None:
        try:
            tracker = self._open()
            while (row := self._rows.get()) is not None:
                tracker.log(row)
            tracker.close()
        except BaseException as error:  # whatever it is, the training goes on
            self._give_up(str(error) or type(error).__name__)

    def _give_up(self, problem: str) -> None:
        if not self._off.is_set():
            self._off.set()
            self._warn(one_line(f"warning: {self._name} is off: {problem}; log.csv has every figure"))
