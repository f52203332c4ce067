"""Write the files that are made from the code."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.generated import PARAMETERS_FILE, SCHEMA_FILE, json_schema, parameters_md
from pipeline.config.presets import DEFAULT, composed
from pipeline.storage.files import write_text


def main() -> None:
    """Write the JSON schema of params.yaml and docs/parameters.md."""
    for path, text in files().items():
        write_text(path, text)
        print(path)


def files() -> dict[Path, str]:
    """Every such file, and what it should hold."""
    return {SCHEMA_FILE: json_schema(), PARAMETERS_FILE: parameters_md(composed(DEFAULT))}
