"""Pages in Chromium, driven by Playwright: what they ask for, what goes wrong, what axe-core finds."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.setup_browser import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LOUD = ("error", "warning")  # what is said on the console because something is wrong
GRAVE = ("serious", "critical")  # of axe-core's impacts: what keeps people from using a page


def missing() -> str:
    """What a browser lacks on this machine, and what to do; empty if there is one."""
    if importlib.util.find_spec("playwright") is None:
        return "no Playwright; `make install EXTRAS=browser` installs it"
    return "" if chromium() else "no Chromium; `make setup-browser` installs it"


@contextmanager
def started() -> Iterator[Browser]:
    """Chromium without a window. While it runs, nothing else in this thread can run an event loop."""
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has none
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        yield browser
        browser.close()


@dataclass
class Visit:
    """An open page, what went wrong on it, and which addresses it asked for."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def visiting(
    browser: Browser, address: str | Path, width: int = 1280, height: int = 900, dark: bool = False
) -> Iterator[Visit]:
    """Open a URL or a file."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
    )
    visit = Visit(context.new_page())
    page = visit.page
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    page.on("console", lambda said: visit.errors.extend([said.text] if said.type in LOUD else []))
    page.on("request", lambda request: visit.requests.append(request.url))
    page.goto(address.resolve().as_uri() if isinstance(address, Path) else address)
    try:
        yield visit
    finally:
        context.close()


def findings(page: Page) -> list[tuple[str, str]]:
    """The impact and a description of each thing that axe-core finds."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        (found["impact"], f"{found['id']}: {node['html'][:200]}")
        for found in Axe().run(page).response["violations"]
        for node in found["nodes"]
    ]


def grave_findings(page: Page) -> list[str]:
    return [finding for impact, finding in findings(page) if impact in GRAVE]


def scrolls_sideways(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))
