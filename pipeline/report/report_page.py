"""The report as one HTML file that needs nothing else: no request goes out, and it opens from disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.storage.files import write_text

FOLDER = Path(__file__).with_name("html")
STYLES = ("report.css",)
SCRIPTS = ("elements.js", "chart.js", "lens.js", "sections.js", "report.js")


def write_page(path: Path, report: Mapping[str, Any]) -> None:
    """Write the page of a report, {title, runs, …}. Equal reports give equal bytes."""
    write_text(path, page(report))


def page(report: Mapping[str, Any]) -> str:
    """The text of the page. What comes from texts and names cannot become HTML or script."""
    data = json.dumps(_finite(report), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = {
        "STYLE": "\n".join(map(_file, STYLES)),
        "SCRIPT": "\n".join(map(_file, SCRIPTS)),
        "DATA": data.replace("<", "\\u003c"),  # so that no </script> or <!-- ends or changes the element
    }
    text = _file("report.html")
    for name, content in parts.items():  # the data last, because nothing is filled in after it
        text = text.replace(f"{{{{{name}}}}}", content, 1)
    return text


def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _finite(value: Any) -> Any:
    """The same values, with None for numbers that JSON does not have, such as a loss that diverged."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
