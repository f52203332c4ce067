"""The report of one run, or of several side by side, as the values that its page draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.config.params import Params
from pipeline.report.run_files import RunFiles
from pipeline.report.run_report import commands, experiments_table, run_report
from pipeline.runtime.device import use_device


def report_of(runs: Sequence[RunFiles], params: Params) -> dict[str, Any]:
    """{title, runs, experiments}. The texts are sampled as `params.sample` says."""
    device = use_device(params.runtime)
    reports = [run_report(files, params, device) for files in runs]
    for report in reports:
        report["commands"] = list(commands(report))
    alone = reports[0] if len(reports) == 1 else None
    datasets = list(dict.fromkeys(report["data"]["name"] for report in reports))
    title = "A language model trained on" if alone else f"{len(reports)} runs on"
    return {
        "title": f"{title} {', '.join(datasets)}",
        "runs": reports,
        "experiments": experiments_table() if alone else None,
    }
