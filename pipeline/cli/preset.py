"""List the presets, or put one into params.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.config import presets
from pipeline.config.command_line import Force
from pipeline.config.params import PARAMS_FILE
from pipeline.storage.files import write_text


def main(
    name: Annotated[str, typer.Argument(help="The preset; `gpt-pipeline presets` lists them.")],
    force: Force = False,
) -> None:
    """Put a preset's values into params.yaml, keeping its comments."""
    changed = apply(name, force)
    print(f"{PARAMS_FILE} is now preset {name}: {presets.description(name)}")
    show_changes(changed)


def list_presets() -> None:
    """List the presets and what they train."""
    known = presets.names()
    width = max(map(len, known))
    for name in known:
        print(f"{name:<{width}}  {presets.description(name)}")


def apply(
    name: str,
    force: bool = False,
    folder: Path = presets.FOLDER,
    params_file: Path = PARAMS_FILE,
    values: Mapping[str, Any] | None = None,
) -> dict[str, tuple[Any, Any]]:
    """Replace params.yaml by a preset; see `presets.replacement`. Returns the changes."""
    text, changed = presets.replacement(name, force, folder, params_file, values)
    write_text(params_file, text)
    return changed


def show_changes(changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Print {dotted name: (value before, value now)}."""
    for key, (before, after) in changed.items():
        print(f"  {key}: {presets.show(before)} -> {presets.show(after)}")
