"""Run the stages that are out of date, and show the results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli import preset as presets
from pipeline.cli import summary
from pipeline.config.command_line import Force
from pipeline.config.params import PARAMS_FILE
from pipeline.config.presets import DEFAULT


def main(
    preset: Annotated[
        str | None, typer.Option(help="First put this preset into params.yaml.", show_default=False)
    ] = None,
    force: Force = False,
) -> None:
    """Run `dvc repro`, then print the summary."""
    if preset is not None or not PARAMS_FILE.exists():
        presets.main(preset or DEFAULT, force)
    run_pipeline()


def run_pipeline() -> None:
    """Run the stages that are out of date, then print the summary. Exits with DVC's status if one fails."""
    status = dvc("repro")
    if status:
        sys.exit(status)
    summary.main()


def dvc(*arguments: str) -> int:
    """Run DVC with this Python and return its exit status."""
    process = subprocess.Popen([sys.executable, "-m", "dvc", *arguments], env=_environment())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            pass  # DVC and the stage got Ctrl-C too: let them save what they have


def out_of_date(*stages: str) -> set[str]:
    """The full names, such as `eval_baselines@xz`, of those `stages` that DVC would run again."""
    command = [sys.executable, "-m", "dvc", "status", "--json", *stages]
    found = subprocess.run(command, env=_environment(), stdout=subprocess.PIPE, text=True, check=True)
    status: dict[str, Any] = json.loads(found.stdout)
    return set(status)


def _environment() -> dict[str, str]:
    """The environment for DVC, in which the command `python` of the stages is this Python."""
    folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])}
