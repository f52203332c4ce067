"""Train a sweep of small runs and fit a scaling law: results/scaling.json, .csv and .png."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.config.command_line import Overrides
from pipeline.config.errors import UserError
from pipeline.config.params import load_params
from pipeline.config.paths import SCALING, SCALING_PICTURE, SCALING_RUNS, tokens_folder

if TYPE_CHECKING:  # PyTorch takes seconds to import, which --help need not wait for
    from pipeline.report.scaling import Prediction, ScalingReport
    from pipeline.train.sweep import PlannedRun, Size, TrainedRun

AHEAD = 10  # times the compute of the largest run, if no budget is given
COLUMNS = ("n_layer", "n_embd", "params", "tokens", "flops", "6ND", "seconds", "val_loss", "val_bpb", "run")


def main(
    sizes: Annotated[
        str,
        typer.Option(
            metavar="LAYERSxWIDTH,...", help="Models, such as 2x64,3x96,4x128; by default five around yours."
        ),
    ] = "",
    tokens: Annotated[
        str,
        typer.Option(
            metavar="TOKENS,...",
            help="Training tokens, such as 200k,400k,1M; by default 1/8 to all of train.max_iters.",
        ),
    ] = "",
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Runs at once, each a process.")] = 1,
    flops: Annotated[
        float | None,
        typer.Option(help="Say which size is best for these FLOPs; by default 10x the largest run's.", min=1),
    ] = None,
    hours: Annotated[
        float, typer.Option(help="Say which size is best for these hours on this machine.", min=1e-6)
    ] = 1.0,
    overrides: Overrides = None,
) -> None:
    """Train models of several sizes on several amounts of tokens, and fit L(N, D) = E + A/N^alpha + B/D^beta.

    Everything else is as in params.yaml. Each run is an ordinary one in runs/: stopped or killed, the same
    command continues with what is missing.
    """
    params = load_params(overrides or [])
    params.check_sections()
    wanted = _sizes(sizes), _budgets(tokens)
    for name, budget in (("--flops", flops), ("--hours", hours)):
        if budget is not None and not math.isfinite(budget):
            raise UserError(f"{name} {budget}: not finite; name a number")
    from pipeline.evaluate.scaling_law import Point
    from pipeline.report.scaling import ScalingReport
    from pipeline.tokens.shards import load_manifest
    from pipeline.train.sweep import default_sizes, default_tokens, plan

    manifest = load_manifest(tokens_folder(params))
    plans = plan(params, wanted[0] or default_sizes(params), wanted[1] or default_tokens(params))
    trained = _trained(plans, jobs)
    points = [
        Point(
            one.metrics["params"],
            one.run.tokens,
            one.run.flops,
            one.metrics["seconds"],
            one.metrics["val_loss"],
        )
        for one in trained
    ]
    names = {point.params: str(one.run.size) for point, one in zip(points, trained, strict=True)}
    title = f"Scaling on {params.data.dataset} ({params.tokenizer.name} tokens)"
    report = ScalingReport(points, names, title, manifest.train.tokens)
    largest = max(point.flops for point in points)
    predictions = report.predict([largest, flops or AHEAD * largest], [hours])
    _write(report, trained, predictions, {"data": manifest.fingerprint, "jobs": jobs})
    print(f"{report.runs_table()}\n\n{report.text(predictions)}\n")
    print(f"{SCALING_RUNS}: the runs\n{SCALING}: the fit\n{SCALING_PICTURE}: the picture")


def _sizes(text: str) -> list[Size]:
    from pipeline.train.sweep import Size

    found = [re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,5})", word) for word in text.replace(",", " ").split()]
    if not all(found):
        raise UserError(f"--sizes {text}: write each as layers x width, such as 2x64,3x96,4x128")
    return [Size(int(size[1]), int(size[2])) for size in found if size]


def _budgets(text: str) -> list[int]:
    units = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
    found = [
        re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([kMB]?)", word) for word in text.replace(",", " ").split()
    ]
    if not all(found) or any(float(number[1]) == 0 for number in found if number):
        raise UserError(f"--tokens {text}: write positive numbers, such as 200k,400k,1M")
    return [round(float(number[1]) * units[number[2]]) for number in found if number]


def _trained(plans: Sequence[Sequence[PlannedRun]], jobs: int) -> list[TrainedRun]:
    """Train the runs of a sweep, the smallest size first in the result. Exits if a signal asks to stop."""
    from pipeline.track.console import say
    from pipeline.train.loop import Interrupted
    from pipeline.train.sweep import train_sweep

    progress = _progress(plans, jobs, say)
    trained: list[TrainedRun] = []
    try:
        progress(trained)
        for one in train_sweep(plans, jobs, say):
            trained.append(one)
            progress(trained)
    except Interrupted as stopped:
        say("the sweep was stopped; run the same command to continue")
        sys.exit(stopped.status)
    return sorted(trained, key=lambda one: (one.run.size, one.run.tokens))


def _progress(
    plans: Sequence[Sequence[PlannedRun]], jobs: int, say: Callable[[str], None]
) -> Callable[[Sequence[TrainedRun]], None]:
    """A function that says, from the runs that are finished, how many are left and for about how long."""
    from pipeline.track.console import duration

    runs = [run for of_size in plans for run in of_size]
    flops = sum(run.flops for run in runs)

    def show(trained: Sequence[TrainedRun]) -> None:
        done = sum(one.run.flops for one in trained)
        left = ""
        if trained and len(trained) < len(runs):
            rate = done / sum(one.metrics["seconds"] for one in trained)
            left = f"; {duration((flops - done) / rate / jobs)} left, if they are all to be trained"
        say(f"{len(trained)} of {len(runs)} runs are there{left}")

    return show


def _write(
    report: ScalingReport,
    trained: Sequence[TrainedRun],
    predictions: Sequence[Prediction],
    about: Mapping[str, Any],
) -> None:
    """Write the runs, the picture, and then the fit with the hashes of both."""
    from pipeline.report.tables import write_csv
    from pipeline.storage.checksums import sha256_file, write_checked_json

    write_csv(SCALING_RUNS, COLUMNS, map(_row, trained))
    report.draw(SCALING_PICTURE)
    files = {str(path): sha256_file(path) for path in (SCALING_RUNS, SCALING_PICTURE)}
    write_checked_json(SCALING, {**about, **report.as_json(predictions), "files": files})


def _row(one: TrainedRun) -> tuple[Any, ...]:
    size, metrics = one.run.size, one.metrics
    six_nd = 6 * metrics["params"] * one.run.tokens
    return (
        size.n_layer,
        size.n_embd,
        metrics["params"],
        one.run.tokens,
        int(one.run.flops),
        six_nd,
        *(metrics[name] for name in ("seconds", "val_loss", "val_bpb")),
        one.key,
    )
