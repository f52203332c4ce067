"""Put the trained model and its baselines into one table: results/baselines.json, .md and .png."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.data.shards import load_manifest
from pipeline.data.sources import load_spec
from pipeline.evaluate.baselines import file_name
from pipeline.evaluate.comparison import Row, read_rows, write_comparison
from pipeline.params import load_params
from pipeline.paths import (
    BASELINES,
    COMPARISON,
    COMPARISON_PICTURE,
    COMPARISON_TABLE,
    METRICS,
    MODEL,
    PRETRAINED,
    tokens_folder,
)
from stages.command import Overrides, run


def main(overrides: Overrides = None) -> None:
    """Compare what has been evaluated on the active dataset's validation text."""
    params = load_params(overrides or [])
    dataset, manifest = params.data.dataset, load_manifest(tokens_folder(params))
    files = [BASELINES / file_name(name) for name in params.baselines.models]
    files += [PRETRAINED / file_name(name) for name in params.baselines.pretrained]
    if METRICS.exists():
        if json.loads(METRICS.read_text(encoding="utf-8")).get("settings") == params.fingerprint:
            files.append(METRICS)
        else:
            _note(f"{MODEL} is of other parameters than those in params.yaml: left out; `dvc repro` trains")
    published = load_spec(dataset).published
    rows = read_rows(
        [path for path in files if path.exists()], manifest.fingerprint, manifest.val.tokens - 1, published
    )
    current = [row for row in rows if not _is_stale(row)]
    title = f"The validation text of {dataset}"
    print(write_comparison(current, COMPARISON, COMPARISON_TABLE, COMPARISON_PICTURE, title))
    print(f"{COMPARISON_TABLE}: this table")
    print(f"{COMPARISON}: the same for programs")
    print(f"{COMPARISON_PICTURE}: the picture")


def _is_stale(row: Row) -> bool:
    """Whether other weights are in the model's folder by now, which DVC cannot see."""
    if row.weights is None or not Path(row.name).is_dir():
        return False
    from pipeline.interop.models import open_model

    if open_model(row.name).sha256 == row.weights:
        return False
    _note(
        f"{row.name} has other weights than when it was evaluated: left out; evaluate it anew with "
        f"`dvc repro --force --single-item stages/dvc.yaml:eval_pretrained@{row.name}`, or "
        f"`eval_baselines@{row.name}`"
    )
    return True


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
