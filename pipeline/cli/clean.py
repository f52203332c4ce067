"""Remove what the pipeline made last; DVC's cache has it still. `make` runs this with the system's Python."""

from __future__ import annotations

import shutil

FOLDERS = ("results", "dvc_plots")


def main() -> None:
    """Remove results/ and dvc_plots/. `gpt-pipeline repro` makes results/ again, from DVC's cache."""
    for folder in FOLDERS:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
