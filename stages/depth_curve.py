"""Draw validation loss over depth and losses while training: results/depth.png, results/loss.png, tables."""

from __future__ import annotations

from pipeline.config.command_line import Overrides
from pipeline.config.params import load_params
from pipeline.config.paths import (
    DEPTH_CURVE,
    DEPTH_PICTURE,
    LOG,
    LOSS_PICTURE,
    MODEL,
    REFERENCE_LINES,
    STOPPING,
    tokens_folder,
)
from pipeline.distributed.launch import is_main, run_on_ranks
from pipeline.evaluate.baselines import evaluated
from pipeline.evaluate.depth import Baseline, measure
from pipeline.model.load import load_model
from pipeline.report.depth_curve import draw, limits, losses_of, write_lines, write_stopping, write_table
from pipeline.report.loss_curve import draw_losses
from pipeline.runtime.device import use_device
from pipeline.tokens.shards import load_manifest
from pipeline.track.csv_log import read_log
from pipeline.track.open import show_later
from pipeline.weights.open import open_model


def main(overrides: Overrides = None) -> None:
    """Measure the trained model's validation loss after 1, 2, … steps."""
    params = load_params(overrides or [])
    device = use_device(params.runtime)
    stored = open_model(MODEL)
    model = load_model(stored, device)
    others = evaluated(params.baselines.models, load_manifest(tokens_folder(params)).fingerprint)
    baselines = [Baseline(name, figures["val_bpb"]) for name, figures in others]
    curve = measure("model", model, params, tokens_folder(params), device)
    if not is_main():
        return
    write_table(DEPTH_CURVE, curve)
    write_stopping(STOPPING, curve)
    title = f"{params.data.dataset} ({params.tokenizer.name} tokens), {model.num_params():,} parameters"
    draw(DEPTH_PICTURE, curve, baselines, title, stored.sha256)
    rows = read_log(LOG)
    lines = losses_of(baselines, curve)
    draw_losses(LOSS_PICTURE, rows, lines, title, stored.sha256)
    _, high = limits(curve, lines)
    shown = {name: loss for name, loss in lines.items() if loss <= high}
    ends = {"depth": (1, max(curve.points)), "step": (0, int(rows[-1]["step"] or 0))}
    write_lines(REFERENCE_LINES, shown, ends)
    losses = {depth: evaluation.loss for depth, evaluation in curve.points.items()}
    show_later(stored.sha256, params, {"depth_curve": losses})
    print(f"{DEPTH_CURVE}: the curve\n{DEPTH_PICTURE}: the picture\n{LOSS_PICTURE}: losses while training")
    if curve.stopping:
        print(f"{STOPPING}: mean depth and loss for each threshold of learned stopping")


if __name__ == "__main__":
    run_on_ranks(main, "stages.depth_curve")
