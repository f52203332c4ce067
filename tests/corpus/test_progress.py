"""Reports of progress where stderr is no terminal."""

from __future__ import annotations

import pytest

from pipeline.corpus import progress as progress_module
from pipeline.corpus.progress import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the progress sees; a list of one, to be changed."""
    seconds = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_line_now_and_then_says_how_much_is_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("text", "B", total=5000, done=1000) as advance:
        for _ in range(6):
            clock[0] += 4
            advance(100)
    # 12 s after the start 300 bytes came, and 3,700 are left
    assert capsys.readouterr().err.splitlines() == [
        "text: 1.30k of 5.00k, 25.0B/s, 02:28 left",
        "text: 1.60k of 5.00k, 25.0B/s, 02:16 left",
    ]


def test_without_a_total_only_what_was_done(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("text", " documents") as advance:
        clock[0] += 20
        advance(50)
        advance(50)
    assert capsys.readouterr().err == "text: 50.0, 2.50 documents/s\n"
