"""Evaluate one baseline on the active dataset's validation text: results/baselines/<name>.json."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.evaluate.baselines import evaluate_baseline, file_name
from pipeline.files import write_json
from pipeline.params import load_params
from pipeline.paths import BASELINES, tokens_folder
from stages.command import Overrides, run


def main(
    name: Annotated[
        str, typer.Argument(help="uniform, unigram, bigram, trigram, xz, or a saved model's folder.")
    ],
    overrides: Overrides = None,
) -> None:
    """Measure a baseline's loss in nats per token and bits per byte."""
    params = load_params(overrides or [])
    result = evaluate_baseline(name, params, tokens_folder(params))
    path = BASELINES / file_name(name)
    write_json(path, {"name": name, **result.as_json()})
    print(f"{path}: val loss {result.loss:.4f} nats per token, {result.bits_per_byte:.4f} bits per byte")


if __name__ == "__main__":
    run(main)
