"""Write the files, and parts of files, that are made from the code."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.cli.commands import make_help
from pipeline.config.params_yaml import SCHEMA_FILE, json_schema
from pipeline.config.presets import DEFAULT, composed
from pipeline.report.parameters_page import PARAMETERS_FILE, parameters_page
from pipeline.report.scaling_plan import SCALING_FILE, scaling_plan
from pipeline.storage.files import write_text

README = Path("README.md")
MADE = re.compile(r"(<!-- made by `make generate` -->\n).*?(\n<!-- end -->\n)", re.DOTALL)


def main() -> None:
    """Write the schema of params.yaml, docs/parameters.md, and parts of README.md and docs/scaling.md."""
    for path, text in files().items():
        write_text(path, text)
        print(path)


def files() -> dict[Path, str]:
    """Every such file, and what it should hold."""
    return {
        SCHEMA_FILE: json_schema(),
        PARAMETERS_FILE: parameters_page(composed(DEFAULT)),
        README: _with(README, f"```\n{make_help()}\n```"),
        SCALING_FILE: _with(SCALING_FILE, f"\n{scaling_plan()}\n"),
    }


def _with(path: Path, made: str) -> str:
    """The text of a page with `made` in its place."""
    text, found = MADE.subn(lambda match: f"{match[1]}{made}{match[2]}", path.read_text(encoding="utf-8"))
    assert found == 1, f"{path} has one place for what is made"
    return text
