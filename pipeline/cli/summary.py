"""Print the summary of the active results."""

from __future__ import annotations

from pipeline.config.params import load_params
from pipeline.report.summary import summary


def main() -> None:
    """Print the losses beside the baselines, a sample, where the files are, and what to try next."""
    print(f"\n{summary(load_params())}")
