"""The table of the model and its baselines: in order, in every form."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib import image

from pipeline.evaluate.comparison import OURS, rows
from pipeline.report.comparison import as_markdown, write_comparison
from tests.figures import results


def test_all_forms_have_the_best_first(tmp_path: Path) -> None:
    found = rows(results()[:4], "here", 100, {"gpt2": 3.12})
    table, picture = tmp_path / "out" / "b.md", tmp_path / "out" / "b.png"
    text = write_comparison(found, tmp_path / "out" / "b.json", table, picture, "A title")
    assert [row["name"] for row in json.loads((tmp_path / "out" / "b.json").read_text())] == [
        "gpt2",
        OURS,
        "bytes",
        "xz",
    ]
    assert table.read_text() == f"# A title\n\n{text}"
    lines = text.splitlines()
    assert len({len(line) for line in lines[:6]}) == 1, "columns are aligned"
    assert [line.split("|")[1].strip() for line in lines[2:6]] == ["gpt2", OURS, "bytes", "xz"]
    assert lines[2].split("|")[2].strip() == "124,439,808" and lines[2].split("|")[7].strip() == "3.12"
    assert "3.0000 *" in lines[4] and lines[-1].startswith("\\*")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.json", "b.md", "b.png"]
    assert image.imread(picture).shape[2] == 4


def test_who_read_the_start_alone_is_told_from_who_read_all(tmp_path: Path) -> None:
    found = rows(results(), "here", 100, {})
    text = write_comparison(found, tmp_path / "b.json", tmp_path / "b.md", tmp_path / "b.png", "A title")
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:9]] == [
        "gpt2-xl, on the first 30 tokens",
        f"{OURS}, on the first 30 tokens",
        "gpt2",
        OURS,
        "bytes",
        "char, on the first 30 tokens",
        "xz",
    ]
    assert [row["first_tokens"] for row in json.loads((tmp_path / "b.json").read_text())[:3]] == [
        30,
        30,
        None,
    ]


def test_columns_and_notes_that_say_nothing_are_left_out() -> None:
    text = as_markdown(rows(results()[:2], "here", 100, {}))
    assert "published" not in text and "*" not in text
