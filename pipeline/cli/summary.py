"""Say where the active run's results are: loss against the baselines, a sample, and what to try next."""

from __future__ import annotations

import csv
import json

from pipeline.config.errors import UserError
from pipeline.config.params import load_params
from pipeline.config.paths import BASELINES, DEPTH_CURVE, DEPTH_PICTURE, LOG, METRICS, MODEL, SAMPLES
from pipeline.evaluate.baselines import file_name

NEXT = """\
Try next
  make sample START="The "                one more sample, from your own words
  dvc exp run -S {change:<24} change one parameter and see what it does (needs git)
  dvc exp show                            ... compared with every other experiment
  make train-on TEXT='my/texts/*.txt'     train on your own text
  make                                    everything else
  (run `source .venv/bin/activate` once for `dvc` and `python`)"""


def main() -> None:
    """Print the summary of results/."""
    params = load_params()
    if not METRICS.exists():
        raise UserError(f"{METRICS}: no results yet; run `dvc repro` first")
    metrics = json.loads(METRICS.read_text(encoding="utf-8"))
    model = f"this model ({metrics['params'] / 1e6:.2f}M parameters)"
    rows = [(model, metrics["val_loss"], metrics["val_bpb"])]
    for name in params.baselines.models:
        path = BASELINES / file_name(name)
        if path.exists():
            baseline = json.loads(path.read_text(encoding="utf-8"))
            rows.append((name, baseline["val_loss"], baseline["val_bpb"]))
    width = max(len(name) for name, _, _ in rows)
    print(f"\n{'Validation loss of ' + params.data.dataset:<{width}}  nats per token  bits per byte")
    for name, loss, bpb in sorted(rows, key=lambda row: row[2]):
        print(f"{name:<{width}}  {loss:>14.4f}  {bpb:>13.4f}")
    if metrics["init_from"] != "scratch" and LOG.exists():
        with LOG.open(encoding="utf-8", newline="") as file:
            before = next(csv.DictReader(file))["val_loss"]
        print(
            f"It started from {metrics['init_from']}, at {float(before):.4f} (on train.eval_iters batches)."
        )
    if metrics["best_step"] != metrics["steps"]:
        print(f"The best model, at step {metrics['best_step']:,}, has {metrics['best_val_loss']:.4f}.")
    if SAMPLES.exists():
        first = SAMPLES.read_text(encoding="utf-8").split("\n---------------\n")[0].strip()
        print("\nA sample\n" + "\n".join(f"  {line}" for line in first[:600].splitlines()))
    print("\nWhere things are")
    for path, what in (
        (METRICS, f"all figures ({metrics['seconds']:.0f} s of training, {metrics['device']})"),
        (LOG, "the loss at every step"),
        (DEPTH_PICTURE, "validation loss over depth, with the baselines"),
        (DEPTH_CURVE, "the same as a table"),
        (SAMPLES, "all samples"),
        (MODEL, "the model: weights, config, tokenizer"),
    ):
        if path.exists():
            print(f"  {path!s:<22} {what}")
    change = "model.n_layer=2" if params.train.init_from == "scratch" else "train.max_iters=50"
    print("\n" + NEXT.format(change=change))
