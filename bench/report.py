"""The report of the active results: how soon it is built and opens, its size, and its accessibility."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench import browser
from bench.harness import Figure, run_python, write_figures
from pipeline.config.errors import UserError
from pipeline.config.paths import METRICS, REPORT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SCREENS = ((1280, False), (1280, True), (390, False), (390, True))  # width in pixels, whether it is dark
IMPACTS = ("critical", "serious", "moderate", "minor")
# Resolves when the page has been drawn: the second frame after its scripts ran.
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def main(runs: Annotated[int, typer.Option(min=1, help="Runs of each kind.")] = 5) -> None:
    """Measure the report that `make demo` leaves, in Chromium."""
    if not METRICS.exists():
        raise UserError(f"{METRICS}: no results yet; run `make demo` first")
    if problem := browser.missing():
        raise UserError(problem)
    built = [run_python("build the report", Path(), "-m", "stages.report").seconds for _ in range(runs)]
    with browser.started() as chromium:
        opened = [_opened(chromium) for _ in range(runs + 1)][1:]  # the first one starts a process
        figures = list(_figures(built, opened, _findings(chromium)))
    write_figures("report", "The report", figures)


def _opened(chromium: Browser) -> float:
    """Seconds until the page is drawn."""
    start = time.perf_counter()
    with browser.visiting(chromium, REPORT) as visit:
        visit.page.evaluate(DRAWN)
        return time.perf_counter() - start


def _findings(chromium: Browser) -> Counter[str]:
    """How much axe-core finds of each impact, on all screens together."""
    found: Counter[str] = Counter()
    for width, dark in SCREENS:
        with browser.visiting(chromium, REPORT, width=width, dark=dark) as visit:
            found += Counter(impact for impact, _ in browser.findings(visit.page))
            found["scrolls sideways"] += browser.scrolls_sideways(visit.page)
            found["errors"] += len(visit.errors) + len(visit.requests) - 1
    return found


def _figures(built: list[float], opened: list[float], found: Counter[str]) -> Iterator[Figure]:
    seconds, size = statistics.median(built), REPORT.stat().st_size / 1e6
    yield Figure("built, with Python's start", seconds, f"{seconds:.1f} s", 5, "5.0 s")
    yield Figure("size", size, f"{size:.2f} MB", 3, "3.00 MB")
    seconds = statistics.median(opened)
    yield Figure("opened and drawn in Chromium", seconds, f"{seconds:.2f} s", 1, "1.00 s")
    for name, title in (
        *((impact, f"{impact} findings of axe-core, wide and narrow, light and dark") for impact in IMPACTS),
        ("scrolls sideways", "screens on which it scrolls sideways"),
        ("errors", "errors on the console, and requests to anywhere else"),
    ):
        yield Figure(title, found[name], str(found[name]), 0, "0")
