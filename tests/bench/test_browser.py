"""What the browser of tests and benchmarks finds on a page that is wrong in each way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.browser import findings, grave_findings, scrolls_sideways, visiting
from pipeline.storage.files import write_text
from tests.browser import marks

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = marks

WRONG = """<!DOCTYPE html><title>Wrong</title>
<p style="width: 3000px; color: #eee; background: #fff">Nobody can read this, or a picture without words.</p>
<img src="missing.png"><script>console.error("lost"); nothing()</script>
"""


def test_what_is_wrong_is_found(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "wrong.html"
    write_text(page, WRONG)
    with visiting(browser, page, dark=True) as visit:
        assert "lost" in visit.errors and any("nothing is not defined" in error for error in visit.errors)
        assert visit.requests == [page.as_uri(), page.with_name("missing.png").as_uri()]
        assert scrolls_sideways(visit.page)
        found = grave_findings(visit.page)
        assert {finding.partition(":")[0] for finding in found} >= {"image-alt", "color-contrast"}
        assert ("critical", found[0]) in findings(visit.page) or ("serious", found[0]) in findings(visit.page)
        assert visit.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
