"""How far a long piece of work has come: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


def counted(number: int, noun: str) -> str:
    """A number with its noun, such as `1 file` and `1,200 files`."""
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


@contextmanager
def progress(
    name: str,
    unit: str,
    total: int | None = None,
    done: int = 0,
    more: Callable[[], str] = lambda: "",
) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with each number of units done; what is done is reported on stderr.

    `total` is unknown if None; with it, the time left is reported as well. The `done` units of an earlier
    attempt do not count for the rate. What `more` returns stands at the end of the line.
    """
    terminal = sys.stderr.isatty()
    start = last = time.monotonic()
    now_done = done
    with tqdm(
        desc=name, unit=unit, unit_scale=True, total=total, initial=done, disable=not terminal
    ) as progress_bar:

        def advance(units: int) -> None:
            nonlocal last, now_done
            now_done += units
            progress_bar.set_postfix_str(more(), refresh=False)
            progress_bar.update(units)
            now = time.monotonic()
            if not terminal and now - last >= SECONDS_BETWEEN_LINES:
                last = now
                line = tqdm.format_meter(
                    now_done,
                    total,  # type: ignore[arg-type]  # None is allowed
                    now - start,
                    initial=done,
                    prefix=name,
                    unit=unit,
                    unit_scale=True,
                    bar_format="{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"
                    if total
                    else "{desc}: {n_fmt}, {rate_fmt}",
                )
                line = ", ".join(part for part in (line, more()) if part)
                print(line, file=sys.stderr, flush=True)

        yield advance
