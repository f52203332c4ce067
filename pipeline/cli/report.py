"""Make the report: of the active results, or of several runs side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config.errors import UserError
from pipeline.config.params import load_params
from pipeline.config.paths import DEPTH_CURVE, METRICS, RECORD, REPORT, SAMPLES, runs_folder

MOST_RUNS = 8  # as many as have colors of their own

Runs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUNS]...",
        help="Runs to lay side by side: folders in runs/ (the start of a name is enough), or experiments.",
        show_default=False,
    ),
]


def main(runs: Runs = None) -> None:
    """Write results/report.html, or results/report-runs.html of the runs that are named."""
    if runs:
        _side_by_side(list(dict.fromkeys(runs)))
        return
    from pipeline.cli.repro import dvc

    for path in (METRICS, DEPTH_CURVE, SAMPLES):
        if not path.exists():
            raise UserError(f"{path}: no results yet; run `dvc repro` first")
    # Only this stage: what is out of date is not trained again just to be looked at.
    sys.exit(dvc("repro", "--quiet", "--single-item", "--force", "report"))


def _side_by_side(names: list[str]) -> None:
    if len(names) > MOST_RUNS:
        raise UserError(f"RUNS: {len(names)} runs; name {MOST_RUNS} at most")
    folders = {name: _folder(name) for name in names}
    # PyTorch takes seconds to import, which --help and mistakes need not wait for.
    from pipeline.report.report import report_of
    from pipeline.report.report_page import write_page
    from pipeline.report.run_files import named_run

    path = REPORT.with_stem("report-runs")
    write_page(path, report_of([named_run(name, folders[name]) for name in names], load_params()))
    print(f"{path}: open it in a browser")


def _folder(name: str) -> Path:
    """The folder of a run. Raises UserError for a name of no run or of several."""
    from pipeline.report.run_files import find_run, known_runs

    found = find_run(name) or _run_of_experiment(name)
    if found is None:
        known = [run.name for run in known_runs()]
        more = f" and {len(known) - 4} more" if len(known) > 4 else ""
        remedy = f"there are {', '.join(known[:4])}{more}" if known else "train one first"
        raise UserError(f"RUNS={name}: no run and no experiment of this name; {remedy}")
    return found


def _run_of_experiment(name: str) -> Path | None:
    """The folder of the run that a DVC experiment published; None without such an experiment."""
    import dvc.api
    from dvc.exceptions import DvcException

    if not Path(".git").exists():
        return None
    try:
        record = dvc.api.read(str(RECORD), rev=name)
    except (DvcException, OSError, ValueError):
        return None
    folder = runs_folder() / str(json.loads(record)["run"])
    return folder if folder.is_dir() else None
