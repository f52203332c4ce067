"""Configure DVC for this copy of the project, in .dvc/config.local. `make` runs this before every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.report import dvc_plots_page

CONFIG = Path(".dvc/config.local")
PAGE = Path(".dvc/offline-plots.html")


def main() -> None:
    """Tell DVC whether there is a git repository, and give it a template with which plots work offline."""
    config = CONFIG.read_text(encoding="utf-8") if CONFIG.exists() else ""
    # A folder without .git (a downloaded archive, even one unpacked inside somebody's repository) runs in
    # DVC's no-SCM mode.
    if Path(".git").exists() == ("no_scm = true" in config):
        _configure(*(["--unset", "core.no_scm"] if Path(".git").exists() else ["core.no_scm", "true"]))
    made_from = (Path(dvc_plots_page.__file__), dvc_plots_page.SCRIPT)
    if not PAGE.exists() or PAGE.stat().st_mtime < max(path.stat().st_mtime for path in made_from):
        dvc_plots_page.write_template(PAGE)
    if PAGE.name not in config:
        _configure("plots.html_template", PAGE.name)


def _configure(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "config", "--local", *arguments], check=True)


if __name__ == "__main__":
    main()
