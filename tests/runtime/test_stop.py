"""A run stops between two steps when it is told to, in whichever way."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

from pipeline.runtime.stop import SIGNALS, stop_requested
from tests import tiny

WAIT = """
import time
from pipeline.runtime.stop import stop_requested
with stop_requested() as stop:
    print("ready", flush=True)
    for _ in range(100):
        if number := stop():
            print(number, flush=True)
            break
        time.sleep(0.05)
"""


@pytest.fixture(autouse=True)
def nothing_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's background jobs ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_told_and_the_handlers_are_back_for_the_next(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    with stop_requested() as stop:
        assert stop() is None
        signal.raise_signal(number)
        assert stop() == number
        assert [signal.getsignal(one) for one in SIGNALS] == before
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requested() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("by_dvc", [True, False])
def test_a_stage_stops_when_its_dvc_is_gone_and_another_command_goes_on(by_dvc: bool) -> None:
    """A shell stands for DVC: it starts the stage, and is killed."""
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', '''{WAIT}'''])",
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tiny.ROOT,
        env=environment | ({"DVC_STAGE": "train"} if by_dvc else {}),
    )
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    parent.send_signal(signal.SIGKILL if by_dvc else signal.SIGTERM)
    parent.wait()
    if by_dvc:
        assert parent.stdout.readline() == f"{int(signal.SIGTERM)}\n"
    else:
        assert select.select([parent.stdout], [], [], 0.5)[0] == []
    parent.stdout.close()
