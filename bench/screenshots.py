"""Pictures of the pages, by Chromium: the report and the playground."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench import browser
from bench.serve import server
from pipeline.config.errors import UserError
from pipeline.config.paths import REPORT, RESULTS

if TYPE_CHECKING:
    from playwright.sync_api import Page

WIDTH = 1280
PROMPT, SEED, TOKENS = "The file object is", 3, 80
TOKEN = 8  # of the text that the playground writes: the one that is looked into


@contextmanager
def _visited(address: str | Path, height: int, dark: bool = False) -> Iterator[Page]:
    if problem := browser.missing():
        raise UserError(problem)
    with (
        browser.started() as chromium,
        browser.visiting(chromium, address, width=WIDTH, height=height, dark=dark) as visit,
    ):
        yield visit.page


def report(folder: Path) -> Path:
    """The report of the results in `folder`, from its top to the losses while training."""
    with _visited(folder / REPORT, height=1400) as page:
        return _taken(page, folder, "report")


def lens(folder: Path) -> Path:
    """Its depth lens."""
    with _visited(folder / REPORT, height=900) as page:
        section = page.locator("#lens")
        section.scroll_into_view_if_needed()
        image = folder / RESULTS / "lens.png"
        section.screenshot(path=image)
        return image


def playground(folder: Path) -> Path:
    """The playground with the model of `folder`, in the dark, after it has written a text."""
    with server(folder) as (port, _), _visited(f"http://127.0.0.1:{port}", height=900, dark=True) as page:
        page.get_by_label("Your text").fill(PROMPT)
        page.get_by_label("Tokens").fill(str(TOKENS))
        page.get_by_label("Seed").fill(str(SEED))
        page.get_by_role("button", name="Write").click()
        page.locator("#status", has_text="tokens in").wait_for()
        page.locator(f".text [data-index='{TOKEN}']").hover()
        return _taken(page, folder, "playground")


def _taken(page: Page, folder: Path, name: str) -> Path:
    image = folder / RESULTS / f"{name}.png"
    page.screenshot(path=image)
    return image
