"""The fixture `browser`, which conftest.py brings to all tests; its users have `pytestmark = marks`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from bench.browser import missing, started

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# In one process, so that Chromium starts once for each file.
marks = [pytest.mark.browser, pytest.mark.xdist_group("browser")]


# Not for the whole session: while Playwright runs, nothing else in this thread can run an event loop.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; skips where it or Playwright is missing."""
    if problem := missing():
        pytest.skip(problem)
    with started() as browser:
        yield browser
