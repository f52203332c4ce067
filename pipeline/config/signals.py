"""Handlers of signals for the length of a block."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def handled(numbers: Sequence[int], handler: Callable[[int], None], once: bool = False) -> Iterator[None]:
    """Within the block, `handler` gets these signals, but for those that are ignored, as SIGHUP by nohup.

    With `once`, only the first of them: a second one acts as it would outside of the block.
    """
    handlers = {number: signal.getsignal(number) for number in numbers}
    previous = {number: before for number, before in handlers.items() if before != signal.SIG_IGN}

    def restore() -> None:
        for number, before in previous.items():
            signal.signal(number, before)

    def handle(number: int, _: object) -> None:
        if once:
            restore()
        handler(number)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
