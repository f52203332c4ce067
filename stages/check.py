"""Check the parameters before DVC starts: it clears a stage's outputs before the stage can complain."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from pipeline.config.command_line import Overrides, run
from pipeline.config.params import Params, load_params
from pipeline.config.paths import METRICS, MODEL, ZEROSHOT
from pipeline.corpus.sources import load_spec


def main(overrides: Overrides = None) -> None:
    """Say what is wrong with params.yaml, or with the dataset and the model that it names, or nothing."""
    params = load_params(overrides or [])
    params.check_sections()
    load_spec(params.data.dataset)
    if params.train.init_from not in ("scratch", "resume"):
        _check_start(params)
    for name in filter(os.path.isdir, params.zeroshot.models):
        _compare_weights(name, params.zeroshot.tasks)


def _check_start(params: Params) -> None:
    from pipeline.config.published import check_start
    from pipeline.weights.stored_model import open_model

    start = params.train.init_from
    stored = open_model(start)
    check_start(params.model, stored.config, start)
    metrics = json.loads(METRICS.read_text(encoding="utf-8")) if METRICS.exists() else {}
    if metrics.get("settings") == params.fingerprint and metrics["start"] != stored.sha256:
        first = "dvc repro --force --single-item "
        tokenize = f"{first}tokenize && " if params.tokenizer.name == "pretrained" else ""
        _note(f"{start} has other weights than when {MODEL} was trained; for these: {tokenize}{first}train")


def _compare_weights(name: str, tasks: Sequence[str]) -> None:
    """Say which zero-shot figures are of weights that a model's folder no longer has."""
    from pipeline.evaluate.zeroshot import file_name
    from pipeline.weights.stored_model import open_model

    paths = {task: ZEROSHOT / file_name(task, name) for task in tasks}
    for task, path in paths.items():
        figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if figures and figures["weights"] != open_model(name).sha256:
            _note(
                f"{name} has other weights than when {path} was made; for these: dvc repro --force "
                f"--single-item stages/dvc.yaml:eval_zeroshot_others@{name}-{task}"
            )


def _note(text: str) -> None:  # DVC knows a model by its name alone
    print(f"note: {text}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
