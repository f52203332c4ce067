"""Write the JSON schema of params.yaml, by which editors complete and check it."""

from __future__ import annotations

from pipeline.config.params import SCHEMA_FILE, json_schema
from pipeline.storage.files import write_text


def main() -> None:
    """Write presets/params.schema.json from the typed sections in pipeline/config/params.py."""
    write_text(SCHEMA_FILE, json_schema())
    print(SCHEMA_FILE)
