"""Lay out everything that is known of the trained model on one page: results/report.html."""

from __future__ import annotations

from pipeline.config.command_line import Overrides, run
from pipeline.config.params import load_params
from pipeline.config.paths import REPORT


def main(overrides: Overrides = None) -> None:
    """Write the report of the active results. It takes what is there: an optional result may be missing."""
    # PyTorch takes seconds to import, which --help and completion need not wait for.
    from pipeline.report.report import report_of
    from pipeline.report.report_page import write_page
    from pipeline.report.run_files import published_run

    params = load_params(overrides or [])
    write_page(REPORT, report_of([published_run()], params))
    print(f"{REPORT}: open it in a browser")


if __name__ == "__main__":
    run(main)
