"""Compare the experiments of the current commit: a table, the same as CSV, and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.cli.repro import dvc_output
from pipeline.config.errors import UserError
from pipeline.config.params import PARAMS_FILE
from pipeline.config.paths import EXPERIMENTS, EXPERIMENTS_PICTURE, METRICS
from pipeline.report.experiments import BASELINE, Comparison, Experiment


def main() -> None:
    """Show what each experiment changed and what came of it, beside the baseline, the best one first."""
    comparison = Comparison(*_experiments())
    print(comparison.table())
    comparison.write_csv(EXPERIMENTS)
    print(f"{EXPERIMENTS}: the same, with all figures")
    if any(one.figures for one in comparison.rows):
        comparison.draw(EXPERIMENTS_PICTURE)
        print(f"{EXPERIMENTS_PICTURE}: loss against parameters, seconds and tokens")


def check_git() -> None:
    """Raise UserError outside of a git repository, in which DVC keeps experiments."""
    if not Path(".git").exists():
        raise UserError(
            "experiments are kept in git, and this folder is no git repository; "
            "`git init && git add . && git commit -m baseline` makes it one"
        )


def _experiments() -> tuple[Experiment, list[Experiment]]:
    """The baseline, which is the last commit, and the experiments that started from it."""
    check_git()
    workspace, *commits = json.loads(dvc_output("exp", "show", "--json"))
    head = commits[0]
    listed = head["experiments"] or ()
    experiments = [found for one in listed if (found := _experiment(_name(one), one)) is not None]
    if listed and not experiments:
        reason = (listed[0]["revs"][0].get("error") or {}).get("msg") or "its parameters are missing"
        raise UserError(f"{_name(listed[0])}: DVC cannot read this experiment: {reason}")
    if not experiments:
        raise UserError("no experiment of this commit yet; make one: make experiment SET='model.n_layer=2'")
    baseline, now = _read(BASELINE, head), _read(BASELINE, workspace)
    if baseline is None:
        raise UserError(f"{PARAMS_FILE}: not in the last commit, which experiments start from; commit it")
    if not baseline.figures and now is not None and now.params == baseline.params:
        baseline = now  # dvc.lock is not committed: the same parameters, so the same results
    return baseline, experiments


def _name(listed: Mapping[str, Any]) -> str:
    """An experiment's name, or the start of its commit: one that waits may have none."""
    name: str = listed["name"] or listed["revs"][0]["rev"][:7]
    return name


def _experiment(name: str, listed: Mapping[str, Any]) -> Experiment | None:
    """An experiment as `dvc exp show --json` lists it; None if not even its parameters can be read."""
    state = (listed["executor"] or {}).get("state") or "success"
    if state == "success" and not listed["revs"][0].get("error"):
        return _read(name, listed["revs"][0])
    # What DVC lists as figures of an unfinished experiment are those of the baseline.
    return _read(name, {**listed["revs"][0], "metrics": None}, "failed" if state == "success" else state)


def _read(name: str, revision: Mapping[str, Any], state: str = "") -> Experiment | None:
    data = revision["data"] or {}
    params = (data.get("params") or {}).get(str(PARAMS_FILE), {}).get("data")
    figures = (data.get("metrics") or {}).get(str(METRICS), {}).get("data")
    if not params:
        return None
    return Experiment(name, params, {} if state else figures or {}, state)
