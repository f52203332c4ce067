"""Run the stages that are out of date, and show the results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli import preset as presets
from pipeline.cli.install import add_if_missing
from pipeline.cli.nodes import calling
from pipeline.config.command_line import STAGES_FOLDER, Force
from pipeline.config.params import PARAMS_FILE, load_params
from pipeline.config.paths import raw_folder
from pipeline.config.presets import DEFAULT
from pipeline.config.signals import handled
from pipeline.corpus.sources import load_spec
from pipeline.storage.lock import is_alive

Preset = Annotated[
    str | None, typer.Option(help="First put this preset into params.yaml.", show_default=False)
]


def main(
    preset: Preset = None,
    force: Force = False,
) -> None:
    """Run `dvc repro`, then print the summary."""
    if preset is not None or not PARAMS_FILE.exists():
        presets.main(preset or DEFAULT, force)
    run_pipeline()


def run_pipeline() -> None:
    """Run the stages that are out of date, then print the summary. Exits with the status of one that fails.

    Nodes that `join` are told when the training begins.
    """
    with calling():
        status = repro()
    if status:
        sys.exit(status)
    from pipeline.cli import summary  # imports PyTorch, which takes seconds

    summary.main()


def repro(*arguments: str) -> int:
    """Run `dvc repro` and return its exit status. Raises UserError for a broken params.yaml."""
    params = load_params()  # DVC would say it in several lines
    if load_spec(params.data.dataset).source.kind == "huggingface" and not raw_folder(params).exists():
        add_if_missing("datasets", "hub")
    return dvc("repro", *arguments)


def repro_optional(*targets: str) -> int:
    """Run stages of stages/dvc.yaml that are out of date, all that can be, and return DVC's exit status.

    Their outputs are not in DVC's cache, or each `dvc exp run` would warn of those that never ran. What was
    evaluated is kept in the run cache nevertheless: `dvc commit` puts it there, `dvc repro` alone does not.
    """
    status = repro("--keep-going", *targets)
    return status or dvc("commit", "--quiet", "--force", *targets)


def dvc(*arguments: str) -> int:
    """Run DVC with this Python and return the exit status of the stage that failed, or else DVC's.

    DVC itself has 255 for all that fails. SIGTERM and SIGHUP are passed on to DVC, whose end makes a training
    save and stop; that is waited for.
    """
    with tempfile.TemporaryDirectory(prefix="gpt-pipeline-") as name:
        environment = {**_environment(), STAGES_FOLDER: name}
        process = subprocess.Popen([sys.executable, "-m", "dvc", *arguments], env=environment)
        with handled((signal.SIGTERM, signal.SIGHUP), lambda _: process.terminate()):
            return _status(process, Path(name))


def _status(process: subprocess.Popen[bytes], stages: Path) -> int:
    """Wait until DVC and the stages that it started have ended. Ctrl-C reaches them too: they save first."""
    while True:
        try:
            status = process.wait()
            while _run_on(stages):
                time.sleep(0.1)
            break
        except KeyboardInterrupt:
            pass
    if status == 0:
        return 0
    noted = (int(path.read_text() or 0) for path in stages.glob("[0-9]*"))
    return next(filter(None, noted), status if status > 0 else 128 - status)  # as a shell reports a signal


def _run_on(stages: Path) -> bool:
    """Whether a stage is running that has noted no status yet."""
    return any(not path.read_text() and is_alive(int(path.name)) for path in stages.glob("[0-9]*"))


def out_of_date(*stages: str) -> set[str]:
    """The full names, such as `eval_baselines@xz`, of those `stages` that DVC would run again."""
    status: dict[str, Any] = json.loads(dvc_output("status", "--json", *stages))
    return set(status)


def dvc_output(*arguments: str) -> str:
    """What DVC prints on stdout. Raises CalledProcessError if it fails."""
    command = [sys.executable, "-m", "dvc", *arguments]
    ended = subprocess.run(command, env=_environment(), stdout=subprocess.PIPE, text=True, check=True)
    return ended.stdout


def _environment() -> dict[str, str]:
    """The environment for DVC, in which the command `python` of the stages is this Python."""
    folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])}
