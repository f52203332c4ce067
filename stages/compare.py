"""Put the trained model and its baselines into one table: results/baselines.json, .md and .png."""

from __future__ import annotations

from pipeline.data.shards import load_manifest
from pipeline.data.sources import load_spec
from pipeline.evaluate.comparison import read_rows, write_comparison
from pipeline.params import load_params
from pipeline.paths import (
    BASELINES,
    COMPARISON,
    COMPARISON_PICTURE,
    COMPARISON_TABLE,
    METRICS,
    PRETRAINED,
    tokens_folder,
)
from stages.command import Overrides, run


def main(overrides: Overrides = None) -> None:
    """Compare what has been evaluated on the active dataset's validation text."""
    params = load_params(overrides or [])
    dataset, manifest = params.data.dataset, load_manifest(tokens_folder(params))
    files = sorted(path for folder in (BASELINES, PRETRAINED) for path in folder.rglob("*.json"))
    files += [METRICS] if METRICS.exists() else []
    published = load_spec(dataset).published
    rows = read_rows(files, manifest.fingerprint, manifest.val.tokens - 1, published)
    title = f"The validation text of {dataset}"
    print(write_comparison(rows, COMPARISON, COMPARISON_TABLE, COMPARISON_PICTURE, title))
    print(f"{COMPARISON_TABLE}: this table")
    print(f"{COMPARISON}: the same for programs")
    print(f"{COMPARISON_PICTURE}: the picture")


if __name__ == "__main__":
    run(main)
