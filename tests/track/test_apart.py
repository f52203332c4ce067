"""Whatever a tracker does, the training goes on: there is one warning, and no more rows for that tracker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest

from pipeline.track import apart
from pipeline.track.apart import Apart
from pipeline.track.tracker import Row, Tracker

STEPS = 50


class Recorder:
    """A tracker that does something else at one of its calls."""

    def __init__(self, at: str = "", instead: Callable[[], object] = lambda: None) -> None:
        self.rows: list[Row] = []
        self.calls: list[str] = []
        self._at = at
        self._instead = instead

    def open(self) -> Tracker:
        self._call("open")
        return self

    def log(self, row: Row) -> None:
        self._call("log")
        self.rows.append(row)

    def close(self) -> None:
        self._call("close")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self._at:
            self._instead()


def warnings_of(tracker: Recorder) -> list[str]:
    """The warnings when this tracker sees a short training."""
    warnings: list[str] = []
    training = Apart("recorder", tracker.open, warnings.append)
    for step in range(STEPS):
        training.log({"step": step})
    training.close()
    return warnings


def fail(error: BaseException) -> None:
    raise error


def test_rows_arrive_in_order() -> None:
    tracker = Recorder()
    assert warnings_of(tracker) == []
    assert [row["step"] for row in tracker.rows] == list(range(STEPS))
    assert tracker.calls[-1] == "close"


@pytest.mark.parametrize("error", [OSError("disk full"), SystemExit("disk full")], ids=["error", "exit"])
@pytest.mark.parametrize("at", ["open", "log", "close"])
def test_a_tracker_that_fails_gives_one_warning(at: str, error: BaseException) -> None:
    tracker = Recorder(at, partial(fail, error))
    assert warnings_of(tracker) == ["warning: recorder is off: disk full; log.csv has every figure"]
    assert tracker.calls.count(at) == 1


@pytest.mark.parametrize("waiting", [5, 1000], ids=["queue-full", "queue-long"])
@pytest.mark.parametrize("at", ["open", "log", "close"])
def test_a_tracker_that_hangs_gives_one_warning(
    at: str, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "SECONDS_TO_FINISH", 0.05)
    monkeypatch.setattr(apart, "WAITING_ROWS", waiting)
    released = threading.Event()
    try:
        (warning,) = warnings_of(Recorder(at, released.wait))
    finally:
        released.set()
    full, late = "rows wait for it" in warning, "not finished after" in warning
    assert full != late
    assert full == (waiting < STEPS) or at == "close"
