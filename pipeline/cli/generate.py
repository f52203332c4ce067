"""Write the files, and parts of files, that are made from the code."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.cli.commands import make_help
from pipeline.config.params_yaml import SCHEMA_FILE, json_schema
from pipeline.config.presets import DEFAULT, composed
from pipeline.report.parameters_page import PARAMETERS_FILE, parameters_page
from pipeline.storage.files import write_text

README = Path("README.md")
COMMANDS = re.compile(r"(<!-- made by `make generate` -->\n```\n).*?(```\n<!-- end -->\n)", re.DOTALL)


def main() -> None:
    """Write the JSON schema of params.yaml, docs/parameters.md, and the commands in README.md."""
    for path, text in files().items():
        write_text(path, text)
        print(path)


def files() -> dict[Path, str]:
    """Every such file, and what it should hold."""
    readme, found = COMMANDS.subn(
        lambda match: f"{match[1]}{make_help()}\n{match[2]}", README.read_text(encoding="utf-8")
    )
    assert found == 1, "README.md has a place for the commands"
    return {SCHEMA_FILE: json_schema(), PARAMETERS_FILE: parameters_page(composed(DEFAULT)), README: readme}
