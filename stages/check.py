"""Check the parameters before DVC starts: it clears a stage's outputs before the stage can complain."""

from __future__ import annotations

import json
import sys

from pipeline.data.sources import load_spec
from pipeline.params import load_params
from pipeline.paths import METRICS, MODEL
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

        stored = open_model(start)
        check_start(params.model, stored.config, start)
        metrics = json.loads(METRICS.read_text(encoding="utf-8")) if METRICS.exists() else {}
        if metrics.get("settings") == params.fingerprint and metrics["start"] != stored.sha256:
            print(  # DVC knows a model by its name
                f"note: {start} has other weights than when {MODEL} was trained; to train on these: "
                "dvc repro --force --single-item train",
                file=sys.stderr,
            )


if __name__ == "__main__":
    run(main)
