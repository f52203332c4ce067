"""Check the parameters before DVC starts: it clears a stage's outputs before the stage can complain."""

from __future__ import annotations

import json
import os
import sys

from pipeline.data.sources import load_spec
from pipeline.params import load_params
from pipeline.paths import METRICS, MODEL, ZEROSHOT
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
            first = "dvc repro --force --single-item "
            tokenize = f"{first}tokenize && " if params.tokenizer.name == "pretrained" else ""
            _note(
                f"{start} has other weights than when {MODEL} was trained; for these: {tokenize}{first}train"
            )
    for name in filter(os.path.isdir, params.zeroshot.models):
        for task in params.zeroshot.tasks:
            path = ZEROSHOT / name.lstrip("/") / f"{task}.json"
            if path.exists() and json.loads(path.read_text(encoding="utf-8"))["weights"] != _weights(name):
                _note(
                    f"{name} has other weights than when {path} was made; for these: dvc repro --force "
                    f"--single-item stages/dvc.yaml:eval_zeroshot_others@{name}-{task}"
                )


def _weights(name: str) -> str:
    from pipeline.interop.models import open_model

    return open_model(name).sha256


def _note(text: str) -> None:  # DVC knows a model by its name alone
    print(f"note: {text}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
