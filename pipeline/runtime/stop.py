"""Stopping cleanly between two steps: on Ctrl-C, SIGTERM, a closed terminal, or when DVC is gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.config.signals import handled
from pipeline.distributed.launch import FOLDER, told_to_stop

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_requested() -> Iterator[Callable[[], int | None]]:
    """Yields a function that tells which signal of SIGNALS has arrived; None if none has.

    The first signal only sets this flag. It also restores the previous handlers, so a second signal acts at
    once. A signal that is ignored, as SIGHUP is under nohup, stays ignored. A stage whose DVC process has
    ended counts as told to stop by SIGTERM: who killed DVC meant the stage. So does a rank without launcher.
    """
    requested: int | None = None
    parent = os.getppid() if os.environ.keys() & {"DVC_STAGE", FOLDER} else None

    def request(number: int) -> None:
        nonlocal requested
        requested = number

    def arrived() -> int | None:
        if requested is None and parent not in (None, os.getppid()):
            return int(signal.SIGTERM)
        return requested or told_to_stop()

    with handled(SIGNALS, request, once=True):
        yield arrived
