"""The playground in Chromium: with a mouse, with a keyboard, wide and narrow, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from bench.browser import grave_findings, scrolls_sideways, visiting
from tests import zeroshot
from tests.browser import marks
from tests.family import RECURRENT
from tests.web.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = marks


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    with serving(
        zeroshot.save_model(folder / "loop", zeroshot.bpe(), **RECURRENT),
        zeroshot.save_model(folder / "plain", zeroshot.bpe()),
    ) as address:
        yield address


def write(page: Page, text: str = "The old ship", tokens: int = 12, seed: int = 3) -> None:
    page.get_by_label("Your text").fill(text)
    page.get_by_label("Tokens").fill(str(tokens))
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_role("button", name="Write").click()
    page.locator("#status", has_text="tokens in").wait_for()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read(browser: Browser, address: str, width: int, dark: bool) -> None:
    with visiting(browser, address, width, dark=dark) as visit:
        page = visit.page
        write(page)
        assert page.locator(".text").inner_text().replace("↵", "").startswith("The old ship")
        page.locator(".text [data-index='3']").hover()
        assert page.locator(".details tbody tr").count() in (5, 6)  # with the token itself
        assert grave_findings(page) == [] and not scrolls_sideways(page)
        page.locator(".text [data-index='3']").click()
        page.get_by_role("dialog").wait_for()
        assert page.locator("#lens-table tbody tr").count() == 6  # twice as deep as it was trained
        assert page.locator("#lens-table tr.trained th").inner_text() == "3"
        assert grave_findings(page) == [] and not scrolls_sideways(page)
        assert visit.errors == []
        assert all(request.startswith((f"{address}/", "data:")) for request in visit.requests)


def test_by_keyboard(browser: Browser, address: str) -> None:
    with visiting(browser, address) as visit:
        page = visit.page
        page.get_by_label("Your text").fill("The old ship")
        page.get_by_label("Seed").fill("1")
        page.get_by_label("Your text").press("Control+Enter")
        page.locator("#status", has_text="tokens in").wait_for()
        page.locator(".text [data-index='0']").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        focused = page.locator(":focus")
        assert focused.get_attribute("data-index") == "2"
        assert "likeliest" in (focused.get_attribute("aria-label") or "")
        assert page.locator(".details tbody tr").count() in (5, 6)  # with the token itself
        page.keyboard.press("Enter")
        page.get_by_role("dialog").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="hidden")
        assert page.locator(":focus").get_attribute("data-index") == "2"
        assert visit.errors == []


def test_alternatives_are_sorted(browser: Browser, address: str) -> None:
    with visiting(browser, address) as visit:
        page = visit.page
        write(page, tokens=30)
        digits = 0
        for token in page.locator(".text [data-index]:not([data-index='0'])").all():
            token.focus()
            shown = [float(meter.get_attribute("value") or 0) for meter in page.locator("meter").all()]
            assert shown == sorted(shown, reverse=True) and len(shown) in (5, 6)
            digits += any(name.isdigit() for name in page.locator(".details th").all_inner_texts()[1:])
        assert digits  # JavaScript has such names first


def test_two_models_and_depths(browser: Browser, address: str) -> None:
    with visiting(browser, address) as visit:
        page = visit.page
        page.get_by_label("Two models side by side").check()
        write(page)
        loop, plain = page.locator(".column").all()
        assert loop.locator(".text").inner_text() != plain.locator(".text").inner_text()
        assert plain.get_by_label("Depth").is_hidden()
        first = loop.locator(".text").inner_text()
        loop.get_by_label("Depth").fill("1")
        assert "1" in loop.locator("output").inner_text()
        write(page)
        assert loop.locator(".text").inner_text() != first
        plain.locator("select").select_option(index=0)
        loop.get_by_label("Depth").fill("3")
        write(page)
        assert loop.locator(".text").inner_text() == plain.locator(".text").inner_text() == first
        assert visit.errors == []


def test_stop_and_errors(browser: Browser, address: str) -> None:
    with visiting(browser, address) as visit:
        page = visit.page
        page.get_by_label("Your text").fill("The old ship")
        page.get_by_label("Temperature").fill("0")  # else it may end by itself
        page.get_by_label("Tokens").fill("4096")
        page.get_by_role("button", name="Write").click()
        page.locator(".text [data-index='40']").wait_for()
        page.get_by_role("button", name="Stop").click()
        page.locator("#status", has_text="Stopped after").wait_for()
        assert visit.errors == []
        page.get_by_label("Your text").fill("ship " * 100)
        page.get_by_role("button", name="Write").click()
        page.locator("#status.wrong", has_text="tokens, but").wait_for()
