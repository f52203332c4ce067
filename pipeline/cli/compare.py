"""Put the trained model and its baselines into one table: results/baselines.json, .md and .png."""

from __future__ import annotations

import json
import sys

from pipeline.config.command_line import Overrides, run
from pipeline.config.params import load_params
from pipeline.config.paths import (
    COMPARISON,
    COMPARISON_PICTURE,
    COMPARISON_TABLE,
    METRICS,
    MODEL,
    tokens_folder,
)
from pipeline.corpus.sources import load_spec
from pipeline.evaluate.comparison import evaluated, is_stale, read_rows
from pipeline.report.comparison import write_comparison
from pipeline.tokens.shards import load_manifest


def main(overrides: Overrides = None) -> None:
    """Compare what has been evaluated on the active dataset's validation text."""
    params = load_params(overrides or [])
    dataset, manifest = params.data.dataset, load_manifest(tokens_folder(params))
    files = evaluated(params)
    if METRICS.exists():
        if json.loads(METRICS.read_text(encoding="utf-8")).get("settings") == params.fingerprint:
            files.append(METRICS)
        else:
            _note(f"{MODEL} is of other parameters than those in params.yaml: left out; `dvc repro` trains")
    published = load_spec(dataset).published
    rows = read_rows(files, manifest.fingerprint, manifest.val.tokens - 1, published)
    stale = [row.name for row in rows if is_stale(row)]
    for name in stale:
        anew = f"dvc repro --force --single-item stages/dvc.yaml:eval_pretrained@{name}"
        _note(
            f"{name} has other weights than when it was evaluated: left out; evaluate it anew with `{anew}`, "
            f"or eval_baselines@{name} in its place"
        )
    current = [row for row in rows if row.name not in stale]
    title = f"The validation text of {dataset}"
    print(write_comparison(current, COMPARISON, COMPARISON_TABLE, COMPARISON_PICTURE, title))
    print(f"{COMPARISON_TABLE}: this table")
    print(f"{COMPARISON}: the same for programs")
    print(f"{COMPARISON_PICTURE}: the picture")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
