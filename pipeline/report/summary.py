"""The summary of the active results, which `make demo` ends with."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.config.errors import UserError
from pipeline.config.params import Params
from pipeline.config.paths import (
    DEPTH_CURVE,
    DEPTH_PICTURE,
    LOG,
    LOSS_PICTURE,
    METRICS,
    MODEL,
    RECORD,
    REPORT,
    SAMPLES,
)
from pipeline.evaluate.baselines import evaluated
from pipeline.evaluate.comparison import read_results
from pipeline.report.png import drawn_from
from pipeline.report.tables import plain_table
from pipeline.serve.samples import read_samples
from pipeline.weights.model_folder import WEIGHTS_FILE

SHOWN_CHARACTERS = 600  # of a sample

NEXT = """\
Try next
  make sample START="The "                another sample, from your own prompt
  make serve                              a playground in the browser: write with the model, look inside
  make experiment SET={change:<19} change one parameter and see what it does (needs git)
  make experiments                        ... beside every other experiment
  make train-on TEXT='my/texts/*.txt'     train on your own text
  make                                    all other commands
  (run `source .venv/bin/activate` once for `dvc` and `python`)"""


def summary(params: Params) -> str:
    """Losses beside the baselines, a sample, where the files are, and what to try next.

    Raises UserError if there are no results, or if they are not all of the run that results/run.json records.
    """
    if not METRICS.exists():
        raise UserError(f"{METRICS}: no results yet; run `dvc repro` first")
    weights = MODEL / WEIGHTS_FILE
    record, metrics = read_results(RECORD, METRICS)
    model = record["files"][str(weights)]
    samples = read_samples(SAMPLES, model)
    change = "model.n_layer=2" if params.train.init_from == "scratch" else "train.max_iters=50"
    parts = [
        "\n".join([_losses(params, metrics), *_remarks(metrics)]),
        *_sample(samples),
        "\n".join(["Where things are", *_files(metrics, model, bool(samples))]),
        NEXT.format(change=change),
    ]
    return "\n\n".join(parts)


def _losses(params: Params, metrics: Mapping[str, Any]) -> str:
    rows = [(f"this model ({metrics['params'] / 1e6:.2f}M parameters)", metrics)]
    rows += evaluated(params.baselines.models, metrics["data"])
    rows.sort(key=lambda row: row[1]["val_bpb"])
    header = (f"Validation loss of {params.data.dataset}", "nats per token", "bits per byte")
    cells = [(name, f"{figures['val_loss']:.4f}", f"{figures['val_bpb']:.4f}") for name, figures in rows]
    return plain_table([header, *cells], "<>>")


def _remarks(metrics: Mapping[str, Any]) -> Iterator[str]:
    if metrics["init_from"] != "scratch":
        with LOG.open(encoding="utf-8", newline="") as file:
            before = float(next(csv.DictReader(file))["val_loss"])
        yield f"It started from {metrics['init_from']}, at {before:.4f} (on train.eval_iters batches)."
    if metrics["best_step"] != metrics["steps"]:
        which, step = ("last", "steps") if metrics["saved"] == "best" else ("best", "best_step")
        yield f"The {which} model, of step {metrics[step]:,}, has {metrics[f'{which}_val_loss']:.4f}."


def _sample(samples: Sequence[str]) -> Iterator[str]:
    for first in samples[:1]:
        lines = first.strip()[:SHOWN_CHARACTERS].splitlines()
        yield "\n".join(["A sample", *(f"  {line}" for line in lines)])


def _files(metrics: Mapping[str, Any], model: str, has_samples: bool) -> Iterator[str]:
    others = set() if drawn_from(DEPTH_PICTURE) == model else {DEPTH_PICTURE, DEPTH_CURVE}
    if drawn_from(LOSS_PICTURE) != model:
        others.add(LOSS_PICTURE)
    if not has_samples:
        others.add(SAMPLES)
    if REPORT.exists() and model not in REPORT.read_text(encoding="utf-8", errors="replace"):
        others.add(REPORT)
    for path, text in (
        (REPORT, "all of this on one page, with charts and a look inside: open it in a browser"),
        (METRICS, f"the figures to compare ({metrics['seconds']:.0f} s of training, {metrics['device']})"),
        (LOSS_PICTURE, "losses while training, with the baselines"),
        (LOG, "the loss at every step"),
        (DEPTH_PICTURE, "validation loss over depth, with the baselines"),
        (DEPTH_CURVE, "the same as a table"),
        (SAMPLES, "all samples"),
        (MODEL, "the model: weights, config, tokenizer"),
    ):
        if path.exists() and path not in others:
            yield f"  {path!s:<22} {text}"
