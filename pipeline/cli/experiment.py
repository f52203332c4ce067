"""Run an experiment: a change of parameters, recorded by DVC. The project is afterwards as it was before."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import experiments
from pipeline.cli.repro import dvc
from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE, load_params
from pipeline.storage.files import write_text

LOCK = Path("dvc.lock")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def main(
    set: Annotated[
        list[str],
        typer.Argument(
            metavar="SET...", help="What to change: model.n_layer=2 train.seed=2.", show_default=False
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="The experiment's name; by default DVC makes one.", show_default=False)
    ] = None,
) -> None:
    """Run `dvc exp run` with these parameters, put params.yaml and results/ back, and compare.

    Interrupted or failed, the project is put back too; the same command continues the training.
    """
    experiments.check_git()
    load_params(set)
    if name is not None and not NAME.fullmatch(name):
        raise UserError(f"NAME={name}: not a name that git takes; use letters, digits and - _")
    if not LOCK.exists():
        raise UserError("there are no results to compare an experiment with yet; run `dvc repro` first")
    named = ["--name", name] if name else []
    with _put_back():
        status = dvc("exp", "run", *named, *(word for change in set for word in ("--set-param", change)))
    print(f"{PARAMS_FILE} and results/ are as they were before")
    if status:
        sys.exit(status)
    print()
    experiments.main()


@contextmanager
def _put_back() -> Iterator[None]:
    """Restore params.yaml, dvc.lock and the results that it records, from DVC's cache.

    DVC leaves the branch while it runs an experiment, and does not come back when it is terminated.
    """
    before = {path: path.read_text(encoding="utf-8") for path in (PARAMS_FILE, LOCK)}
    branch = _git("symbolic-ref", "--quiet", "HEAD")
    try:
        yield
    finally:
        for path, text in before.items():
            write_text(path, text)
        if branch and _git("symbolic-ref", "--quiet", "HEAD") != branch:
            _git("symbolic-ref", "HEAD", branch)
            _git("reset", "--quiet", "--", *map(str, before))
        dvc("checkout", "--quiet", "--force", "dvc.yaml")


def _git(*arguments: str) -> str:
    """What git prints; nothing if it fails."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()
