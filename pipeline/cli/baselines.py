"""Compare the trained model with its baselines in one table: results/baselines.json, .md and .png."""

from __future__ import annotations

import sys
from collections.abc import Collection

from pipeline.cli.repro import out_of_date, repro_optional
from pipeline.config.params import load_params
from pipeline.config.paths import (
    COMPARISON,
    COMPARISON_PICTURE,
    COMPARISON_TABLE,
    METRICS,
    MODEL,
    RECORD,
    tokens_folder,
)
from pipeline.corpus.sources import load_spec
from pipeline.evaluate.baselines import evaluate_baseline, read_figures
from pipeline.evaluate.comparison import OURS, baseline_files, read_results, rows
from pipeline.report.comparison import write_comparison
from pipeline.tokens.shards import load_manifest

STAGES = ("eval_baselines", "stages/dvc.yaml:eval_baselines")


def main() -> None:
    """Evaluate baselines.models and baselines.pretrained, and compare them with the trained model."""
    status = repro_optional(*STAGES)
    compare(out_of_date("train", *STAGES))
    sys.exit(2 if status else 0)


def compare(stale: Collection[str] = ()) -> None:
    """Write and print a table of all results on the active dataset's validation text.

    The results of the stages in `stale` are left out. If others read the start of the text alone, the trained
    model is evaluated on that, too.
    """
    params = load_params()
    dataset, manifest = params.data.dataset, load_manifest(tokens_folder(params))
    files = baseline_files(params) | {"train": METRICS}
    left_out = [stage for stage, path in files.items() if stage in stale and path.exists()]
    if left_out:
        print(f"note: out of date and left out: {', '.join(left_out)}; run `dvc repro`", file=sys.stderr)
    current = [path for stage, path in files.items() if stage not in stale and path.exists()]
    results = [
        read_results(RECORD, METRICS)[1] if path == METRICS else read_figures(path) for path in current
    ]
    if METRICS in current and any(figures.get("first_tokens") for figures in results):
        same = evaluate_baseline(str(MODEL), params, tokens_folder(params))
        results.append({"name": OURS, "data": manifest.fingerprint, **same.as_json()})
    published = load_spec(dataset).published
    table = rows(results, manifest.fingerprint, manifest.val.tokens - 1, published)
    title = f"The validation text of {dataset}"
    print(write_comparison(table, COMPARISON, COMPARISON_TABLE, COMPARISON_PICTURE, title))
    print(f"{COMPARISON_TABLE}: this table")
    print(f"{COMPARISON}: the same as JSON")
    print(f"{COMPARISON_PICTURE}: the picture")
