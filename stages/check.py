"""Check the parameters before DVC starts: it clears a stage's outputs before the stage can complain."""

from __future__ import annotations

from pipeline.data.sources import load_spec
from pipeline.params import load_params
from stages.command import Overrides, run


def main(overrides: Overrides = None) -> None:
    """Say what is wrong with params.yaml and the active dataset.yaml, or nothing."""
    params = load_params(overrides or [])
    params.check_sections()
    load_spec(params.data.dataset)


if __name__ == "__main__":
    run(main)
