"""Put a preset into params.yaml, or list the presets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.config import presets
from pipeline.config.command_line import run
from pipeline.config.params import PARAMS_FILE
from pipeline.storage.files import write_text


def main(
    name: Annotated[str | None, typer.Argument(help="The preset; without one, they are listed.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite values edited by hand.")] = False,
) -> None:
    """Put a preset's values into params.yaml, keeping its comments. Without a name, list the presets."""
    if name is None:
        known = presets.names()
        width = max(map(len, known))
        for preset in known:
            print(f"{preset:<{width}}  {presets.description(preset)}")
        return
    changed = apply(name, force)
    print(f"{PARAMS_FILE} is now preset {name}: {presets.description(name)}")
    for key, (before, after) in changed.items():
        print(f"  {key}: {presets.show(before)} -> {presets.show(after)}")


def apply(
    name: str,
    force: bool = False,
    folder: Path = presets.FOLDER,
    params_file: Path = PARAMS_FILE,
    values: Mapping[str, Any] | None = None,
) -> dict[str, tuple[Any, Any]]:
    """Replace params.yaml by a preset; see `presets.replacement`. Returns what changed."""
    text, changed = presets.replacement(name, force, folder, params_file, values)
    write_text(params_file, text)
    return changed


if __name__ == "__main__":
    run(main)
