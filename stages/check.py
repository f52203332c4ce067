"""Check the parameters before DVC starts: it clears a stage's outputs before the stage can complain."""

from __future__ import annotations

from pipeline.data.sources import load_spec
from pipeline.params import load_params
from stages.command import Overrides, run


def main(overrides: Overrides = None) -> None:
    """Say what is wrong with params.yaml, or with the dataset and the model that it names, or nothing."""
    params = load_params(overrides or [])
    params.check_sections()
    load_spec(params.data.dataset)
    start = params.train.init_from
    if start not in ("scratch", "resume"):
        from pipeline.interop.models import open_model
        from pipeline.model.pretrained import check_start

        check_start(params.model, open_model(start).config, start)


if __name__ == "__main__":
    run(main)
