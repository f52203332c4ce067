"""Puts the tables that the benchmarks wrote to results/ into docs/benchmarks.md, and pictures beside it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from pipeline.config.paths import RESULTS
from pipeline.storage.files import write_text

PAGE = Path("docs/benchmarks.md")
PICTURES = Path("docs/images")
BLOCK = re.compile(
    r"(<!-- made by `python -m bench docs` from (bench-[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL
)


def write_docs() -> None:
    """Fill in every table of docs/benchmarks.md whose benchmark has run here; the others stay."""
    text = PAGE.read_text(encoding="utf-8")
    write_text(PAGE, BLOCK.sub(lambda block: f"{block[1]}\n{_table(block[2], block[0])}\n\n{block[3]}", text))
    print(f"{PAGE}: filled in")


def _table(name: str, block: str) -> str:
    """What the benchmark wrote, without its title; what the block has already, if it has not run here."""
    table, picture = RESULTS / f"{name}.md", RESULTS / f"{name}.png"
    if not table.exists():
        return block.partition("-->\n")[2].removesuffix("<!-- end -->").strip()
    text = table.read_text(encoding="utf-8").partition("\n\n")[2].strip()
    if not picture.exists():
        return text
    PICTURES.mkdir(exist_ok=True)
    shutil.copyfile(picture, PICTURES / picture.name)
    return f"{text}\n\n![Validation loss against time]({PICTURES.name}/{picture.name})"
