"""Train variants of the model and compare their depth curves: results/bench-variants.{png,csv,md}."""

from __future__ import annotations

import csv
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import typer

from bench.variants import VARIANTS
from bench.variants import overrides as switches
from pipeline.config.command_line import Overrides
from pipeline.config.errors import UserError
from pipeline.config.params import Params, load_params
from pipeline.config.paths import RESULTS, runs_folder, tokens_folder
from pipeline.evaluate.depth import DepthCurve, mean_curve, measure
from pipeline.model.load import load_model
from pipeline.report.depth_curve import write_tables
from pipeline.report.tables import markdown_table
from pipeline.report.variants import draw_variants
from pipeline.runtime.device import use_device
from pipeline.storage.files import write_text
from pipeline.tokens.shards import load_manifest
from pipeline.track.console import say
from pipeline.train.checkpoint import LOG_FILE
from pipeline.train.fit import FittedRun, fit
from pipeline.train.loop import Interrupted

CURVES = RESULTS / "bench-variants.csv"
TABLE = RESULTS / "bench-variants.md"
PICTURE = RESULTS / "bench-variants.png"

Compared = tuple[DepthCurve, dict[str, Any]]  # a variant's curve and the metrics of its training


def main(
    variants: Annotated[str, typer.Option(metavar="NAME,NAME,...", help="The variants to train.")] = ",".join(
        VARIANTS
    ),
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each variant: train.seed, the next seed, ...")
    ] = 3,
    overrides: Overrides = None,
) -> None:
    """Train variants of the model in params.yaml, skip finished ones, and compare their depth curves."""
    params = load_params(overrides or [])
    family = {name: variant(name, params) for name in variants.replace(",", " ").split()}
    if not family:
        raise UserError(f"--variants is empty; choose from {', '.join(VARIANTS)}")
    if params.train.init_from != "scratch":
        raise UserError(
            f"train.init_from = {params.train.init_from}: no weights fit all variants; "
            "use init_from = scratch (it also continues interrupted runs)"
        )
    load_manifest(tokens_folder(params))
    device = use_device(params.runtime)
    compared = []
    for number, (name, its_params) in enumerate(family.items(), start=1):
        each = []
        for seed in range(params.train.seed, params.train.seed + seeds):
            say(f"{number} of {len(family)}: {name}, seed {seed}")
            each.append(trained(name, its_params.with_overrides([f"train.seed={seed}"]), device))
        compared.append(over_seeds(each))
    compared.sort(key=lambda pair: pair[0].final.loss)
    curves = [curve for curve, _ in compared]
    write_tables(CURVES, curves)
    title = f"{params.data.dataset} ({params.tokenizer.name} tokens), {params.train.max_iters:,} steps"
    draw_variants(PICTURE, curves, title)
    table = markdown(compared)
    write_text(TABLE, f"{table}\n")
    print(f"{table}\n\n{TABLE}: these tables\n{CURVES}: the curves\n{PICTURE}: the picture")


def variant(name: str, params: Params) -> Params:
    """The parameters of a variant. Raises UserError for an unknown variant or one that `params` exclude."""
    changes = switches(name)
    try:
        changed = params.with_overrides(changes)
        return changed if changed.model.loops else changed.with_overrides(["depth.max="])
    except UserError as error:
        raise UserError(f"variant {name}: {error}; change params.yaml or name other --variants") from None


def trained(name: str, params: Params, device: torch.device) -> Compared:
    """Train a variant, unless that was done already, and measure it."""
    try:
        fitted = fit(params, tokens_folder(params), runs_folder(), say)
    except Interrupted as stopped:
        sys.exit(stopped.status)
    log = (fitted.run.finished / LOG_FILE).read_text(encoding="utf-8").splitlines()
    metrics = fitted.metrics | {"experts_per_token": experts_per_token(log)}
    return curve_of(name, fitted, params, device), metrics


def over_seeds(each: Sequence[Compared]) -> Compared:
    """The mean of one variant's curves and metrics over its seeds."""
    metrics = [figures for _, figures in each]
    means = {
        name: None if metrics[0][name] is None else mean(figures[name] for figures in metrics)
        for name in ("seconds", "tokens_per_second", "experts_per_token")
    }
    return mean_curve([curve for curve, _ in each]), metrics[0] | means


def curve_of(name: str, fitted: FittedRun, params: Params, device: torch.device) -> DepthCurve:
    """The depth curve of the model that a finished run keeps."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        fitted.publish_model(folder)
        model = load_model(folder, device)
    return measure(name, model, params, tokens_folder(params), device)


def experts_per_token(log: Iterable[str]) -> float | None:
    """How many experts computed a token, averaged over the layers, from the last row of a log.csv."""
    *_, last = csv.DictReader(log)
    loads = {name: share for name, share in last.items() if share and re.fullmatch(r"moe\d+_load_\d+", name)}
    layers = {name.partition("_")[0] for name in loads}
    return sum(map(float, loads.values())) / len(layers) if layers else None


def markdown(compared: Sequence[Compared]) -> str:
    """A table of the variants, and one of thresholds for each variant with learned stopping."""
    cells = [
        (
            "variant",
            "parameters",
            "experts a token",
            "depth",
            "val loss",
            "over seeds",
            "bits per byte",
            "seconds",
            "tokens/s",
        )
    ]
    for curve, metrics in compared:
        own, experts = curve.own_stopping, metrics["experts_per_token"]
        cells.append(
            (
                curve.name,
                f"{metrics['params']:,}",
                "" if experts is None else f"{experts:.2f}",
                f"{curve.trained_depth}" if own is None else f"{own.mean_depth:.2f} of {curve.trained_depth}",
                f"{curve.final.loss:.4f}",
                _range([seed.final.loss for seed in curve.seeds]),
                f"{curve.final.bits_per_byte:.4f}",
                f"{metrics['seconds']:,.0f}",
                f"{metrics['tokens_per_second']:,.0f}",
            )
        )
    tables = [markdown_table(cells, "<>>>>>>>>")]
    for curve in (curve for curve, _ in compared if curve.stopping):
        rows = [(curve.name, "mean depth", "val loss")]
        for point in curve.stopping:
            how, depth = f"stops above {point.threshold:g}", f"{point.mean_depth:.2f}"
            rows.append((how, depth, f"{point.evaluation.loss:.4f}"))
        full = curve.points[curve.trained_depth].loss
        rows.append(("never stops", f"{curve.trained_depth:.2f}", f"{full:.4f}"))
        tables.append(markdown_table(rows, "<>>"))
    return "\n\n".join(tables)


def _range(losses: Sequence[float]) -> str:
    """From the lowest to the highest loss; nothing for a single one."""
    return f"{min(losses):.4f} to {max(losses):.4f}" if len(losses) > 1 else ""
