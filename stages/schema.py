"""Write the JSON schema of params.yaml, by which editors complete and check it."""

from __future__ import annotations

from pipeline.files import write_text
from pipeline.params import SCHEMA_FILE, json_schema
from stages.command import run


def main() -> None:
    """Write presets/params.schema.json from the typed sections in pipeline/params.py."""
    write_text(SCHEMA_FILE, json_schema())
    print(SCHEMA_FILE)


if __name__ == "__main__":
    run(main)
