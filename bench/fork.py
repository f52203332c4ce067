"""Compare the model family with nanoGPT's recurrent fork: losses, step times, expert loads, stopping.

The configuration is the CPU configuration in nanoGPT's README, at half its length. The programs train each
variant in turns, so that a ratio is between neighboring runs; see bench.harness.
"""

from __future__ import annotations

import csv
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Annotated

import typer

from bench.harness import (
    FLAGS,
    FORK,
    TOKENS,
    VERDICTS,
    call_apart,
    find_clone,
    machine,
    prepare_clone,
    prepare_here,
    train_clone,
    train_here,
)
from bench.variants import VARIANTS, overrides
from pipeline.config import presets
from pipeline.config.errors import UserError
from pipeline.config.params import load_params
from pipeline.config.paths import LOG, MODEL, RESULTS
from pipeline.report.tables import markdown_table
from pipeline.storage.files import write_json, write_text

MAX_ITERS = 1000
FIRST_SEED = 1337  # nanoGPT's seed; its train.py has no flag for it
FLOAT32 = "float32"
WITHOUT_TRACKERS = {"tensorboard_log": False, "wandb_log": False}
LOSS_BARS = {  # nats per token: the fork's losses, means of three seeds, when these limits were set
    "dense": 2.109,
    "moe": 2.074,
    "moe-hard": 2.152,
    "moe-shared": 2.115,
    "shared": 2.166,
    "sticky-dropout": 2.187,
    "layer-dropout": 2.164,
}
ONLY_HERE = ("recurrent", "stopping")  # the fork's depth never varies, and its gate sees the future
STEP_TO_FORK_BAR, STEP_TO_DENSE_BAR = 0.6, 1.4  # step time of `moe`, as a ratio
LOAD_BAR = 1.5  # tokens of the busiest expert over the mean
DEPTH_BAR, STOPPING_LOSS_BAR = 0.7, 0.02  # share of all steps; nats per token above taking all steps


@dataclass(frozen=True)
class Reading:
    """The result of one way of stopping, on the validation split."""

    mean_depth: float  # steps, averaged over the tokens
    val_loss: float  # nats per token


@dataclass(frozen=True)
class Stopping:
    """One model with learned stopping, evaluated in three ways."""

    depth: int  # the number of steps of the model
    threshold: float
    at_threshold: Reading
    softly: Reading  # soft halting, as in training
    never: Reading  # every token takes every step


@dataclass(frozen=True)
class Training:
    """The result of training one variant once with one program."""

    val_loss: float  # nats per token of the last model, over the whole validation split
    step_seconds: float  # median over the steps
    load: float | None = None  # tokens of the busiest expert over the mean, in the worst layer
    stopping: Stopping | None = None


@dataclass(frozen=True)
class Pair:
    """Neighboring runs of the two programs with the same seed."""

    fork: Training | None
    here: Training


@dataclass(frozen=True)
class Row:
    """A variant over the seeds: mean losses, median step times and ratios, the worst load."""

    variant: str
    fork_val_loss: float | None
    val_loss: float
    fork_step_seconds: float | None
    step_seconds: float
    to_fork: float | None
    to_dense: float | None
    load: float | None


@dataclass(frozen=True)
class Check:
    """A figure and its upper limit, `bar`."""

    title: str
    measured: float
    bar: float

    @property
    def met(self) -> bool:
        return self.measured <= self.bar


def main(
    clone: Annotated[
        Path | None,
        typer.Argument(
            metavar="CLONE", help="A clone of github.com/Amr-Hegazy1/nanoGPT.", show_default=False
        ),
    ] = None,
    fork: Annotated[bool, typer.Option(help="Whether to train with the clone too.")] = True,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds to train each variant with.")] = 3,
    variants: Annotated[str, typer.Option(help="The variants to train, separated by commas.")] = ",".join(
        [*LOSS_BARS, *ONLY_HERE]
    ),
    dtype: Annotated[str, typer.Option(help="train.dtype here; the fork always uses float32.")] = FLOAT32,
    max_iters: Annotated[int, typer.Option(min=10, help="Training steps; all limits need 1000.")] = MAX_ITERS,
) -> None:
    """Train the model family with this project and with the fork in turns, and compare the results."""
    if fork and clone is None:
        raise UserError(
            "CLONE is missing; name a clone of the fork, or use --no-fork to measure only this project"
        )
    if not fork and clone is not None:
        raise UserError(f"--no-fork contradicts {clone}; drop one of them")
    if clone is not None:
        find_clone(FORK, clone)
    chosen = list(dict.fromkeys(variants.replace(",", " ").split()))
    for variant in chosen:
        load_params([*overrides(variant), f"train.dtype={dtype}"], presets.FOLDER / f"{presets.DEFAULT}.yaml")

    pairs: dict[str, list[Pair]] = {variant: [] for variant in chosen}
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-fork-") as folder:
        theirs, ours = Path(folder, "fork"), Path(folder, "here")
        prepare_here(ours)
        if clone is not None:
            prepare_clone("fork", clone, theirs, ours)
        for number in range(seeds):
            for index, variant in enumerate(chosen):
                to_do = chosen[index:] + chosen * (seeds - number - 1)
                print(f"seed {number + 1} of {seeds}, {variant}{time_left(took, to_do)}")
                start = time.perf_counter()
                both = clone is not None and variant in LOSS_BARS
                trained_fork = _train_fork(theirs, variant, number, max_iters) if both else None
                trained = _train_here(ours, variant, number, max_iters, dtype)
                pairs[variant].append(Pair(trained_fork, trained))
                took[variant] = time.perf_counter() - start
            report = _write(pairs, max_iters, dtype)  # after each seed, because the next one takes long
    print(f"\n{report}")


def time_left(took: Mapping[str, float], to_do: Sequence[str]) -> str:
    """An estimate of the time for `to_do` from the seconds that variants took before; "" without any."""
    if not took:
        return ""
    typical = mean(took.values())
    seconds = sum(took.get(variant, typical) for variant in to_do)
    return f" (about {max(1, round(seconds / 60))} min left)"


def expert_load(log: Iterable[str]) -> float | None:
    """Tokens of the busiest expert over the mean, in the worst layer, from the last row of a log.csv.

    None without experts. The dummy does not count, because tokens may prefer it.
    """
    *_, last = csv.DictReader(log)
    layers = defaultdict(list)
    for column, share in last.items():
        if (match := re.fullmatch(r"(moe\d+)_load_\d+", column)) and share:
            layers[match[1]].append(float(share))
    return max((max(shares) / mean(shares) for shares in layers.values()), default=None)


def summarize(pairs: Mapping[str, Sequence[Pair]]) -> list[Row]:
    """A row for each variant. The ratio to `dense` is between runs with the same seed."""
    rows = []
    dense = [pair.here.step_seconds for pair in pairs.get("dense", ())]
    for variant, of_seeds in pairs.items():
        here = [pair.here for pair in of_seeds]
        fork = [pair.fork for pair in of_seeds if pair.fork is not None]
        steps, fork_steps = ([training.step_seconds for training in each] for each in (here, fork))
        loads = [training.load for training in here if training.load is not None]
        rows.append(
            Row(
                variant,
                fork_val_loss=mean(training.val_loss for training in fork) if fork else None,
                val_loss=mean(training.val_loss for training in here),
                fork_step_seconds=median(fork_steps) if fork else None,
                step_seconds=median(steps),
                to_fork=_median_ratio(steps, fork_steps) if fork else None,
                to_dense=_median_ratio(steps, dense) if dense else None,
                load=max(loads, default=None),
            )
        )
    return rows


def checks(rows: Sequence[Row], pairs: Mapping[str, Sequence[Pair]], full_length: bool) -> list[Check]:
    """The figures that have a limit. What a model learned is only checked after full-length training."""
    found = []
    for row in rows:
        if row.variant == "moe":
            if row.to_fork is not None:
                found.append(Check("step of moe / the fork's", row.to_fork, STEP_TO_FORK_BAR))
            if row.to_dense is not None:
                found.append(Check("step of moe / dense", row.to_dense, STEP_TO_DENSE_BAR))
    if not full_length:
        return found
    for row in rows:
        if row.variant in LOSS_BARS:
            found.append(Check(f"val loss of {row.variant}", row.val_loss, LOSS_BARS[row.variant]))
    for row in rows:
        if row.load is not None:
            found.append(Check(f"busiest expert / mean of {row.variant}", row.load, LOAD_BAR))
    for variant, stoppings in _stoppings(pairs).items():
        depth, loss = _mean(stopping.at_threshold for stopping in stoppings)
        _, full_loss = _mean(stopping.never for stopping in stoppings)
        found.append(Check(f"mean depth / full of {variant}", depth / stoppings[0].depth, DEPTH_BAR))
        found.append(Check(f"val loss above full depth of {variant}", loss - full_loss, STOPPING_LOSS_BAR))
    return found


def markdown(rows: Sequence[Row], bars: Sequence[Check], pairs: Mapping[str, Sequence[Pair]]) -> str:
    """Tables of the variants, of learned stopping, and of the limits, readable on a terminal too."""
    heads = ("variant", "val loss, fork", "here", "step, fork", "here", "/ fork", "/ dense", "busiest expert")
    cells = [heads]
    for row in rows:
        cells.append(
            (
                row.variant,
                _show(row.fork_val_loss, "{:.4f}"),
                _show(row.val_loss, "{:.4f}"),
                _show(row.fork_step_seconds, "{:.2f} ms", 1e3),
                _show(row.step_seconds, "{:.2f} ms", 1e3),
                _show(row.to_fork, "{:.3f}"),
                _show(row.to_dense, "{:.3f}"),
                _show(row.load, "{:.2f} x mean"),
            )
        )
    tables = [markdown_table(cells, "<>>>>>>>")]
    for variant, stoppings in _stoppings(pairs).items():
        first = stoppings[0]
        lines = [
            (how, f"{depth:.2f} of {first.depth}", f"{loss:.4f}")
            for how, depth, loss in (
                (f"stops above {first.threshold:g}", *_mean(s.at_threshold for s in stoppings)),
                ("soft halting, as in training", *_mean(s.softly for s in stoppings)),
                ("never stops", *_mean(s.never for s in stoppings)),
            )
        ]
        tables.append(markdown_table([(variant, "mean depth", "val loss"), *lines], "<>>"))
    if bars:
        verdicts = [
            (check.title, f"{check.measured:.4f}", f"≤ {check.bar:g}", VERDICTS[check.met]) for check in bars
        ]
        tables.append(markdown_table([("", "here", "limit", ""), *verdicts], "<>><"))
    return "\n\n".join(tables)


def _median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return median(a / b for a, b in zip(above, below, strict=True))


def _stoppings(pairs: Mapping[str, Sequence[Pair]]) -> dict[str, list[Stopping]]:
    """The variants with learned stopping, each with one Stopping per seed."""
    found = {
        variant: [pair.here.stopping for pair in of_seeds if pair.here.stopping is not None]
        for variant, of_seeds in pairs.items()
    }
    return {variant: stoppings for variant, stoppings in found.items() if stoppings}


def _mean(readings: Iterable[Reading]) -> tuple[float, float]:
    """Mean depth and val loss over the seeds."""
    depths, losses = zip(*((reading.mean_depth, reading.val_loss) for reading in readings), strict=True)
    return mean(depths), mean(losses)


def _show(value: float | None, number: str, scale: float = 1.0) -> str:
    return "" if value is None else number.format(value * scale)


def _train_fork(folder: Path, variant: str, number: int, max_iters: int) -> Training:
    settings = {
        **VARIANTS[variant],
        "dtype": FLOAT32,
        "max_iters": max_iters,
        "lr_decay_iters": MAX_ITERS,
        "eval_interval": max_iters,
        "eval_iters": 1,  # it saves only when it evaluates; the loss it prints is not used
        "always_save_checkpoint": True,
        **WITHOUT_TRACKERS,
    }
    figures = train_clone("fork", folder, settings, number)
    return Training(figures["val_loss"], figures["step"])


def _train_here(folder: Path, variant: str, number: int, max_iters: int, dtype: str) -> Training:
    settings = {
        "seed": FIRST_SEED + number,
        "dtype": dtype,
        "max_iters": max_iters,
        "lr_decay_iters": MAX_ITERS,
        "eval_interval": max_iters,
        "always_save_checkpoint": "true",
    }
    changes = [*overrides(variant), *(f"train.{name}={value}" for name, value in settings.items())]
    figures = train_here("here", folder, changes)
    return Training(
        val_loss=figures["val_loss"],
        step_seconds=figures["step"],
        load=expert_load((folder / LOG).read_text(encoding="utf-8").splitlines()),
        stopping=call_apart(_evaluate_stopping, folder)
        if VARIANTS[variant].get("learned_stopping_use_threshold")
        else None,
    )


def _evaluate_stopping(folder: Path) -> Stopping:
    import torch

    from pipeline.evaluate.loss import NEVER, evaluate_stopping
    from pipeline.model.load import load_model
    from pipeline.tokens.batches import evaluation_windows
    from pipeline.tokens.shards import open_split
    from pipeline.tokens.tokenizers import load_tokenizer

    model, tokenizer = load_model(folder / MODEL), load_tokenizer(folder / MODEL)
    assert model.stopping is not None and model.stopping.threshold is not None
    threshold = model.stopping.threshold
    val = open_split(folder / TOKENS, "val")
    windows = evaluation_windows(val, model.block_size, int(FLAGS["batch_size"]))
    points = evaluate_stopping(
        model, windows, tokenizer.token_bytes, torch.device("cpu"), (threshold, None, NEVER)
    )
    at_threshold, softly, never = (Reading(point.mean_depth, point.evaluation.loss) for point in points)
    return Stopping(model.depth, threshold, at_threshold, softly, never)


def _write(pairs: Mapping[str, Sequence[Pair]], max_iters: int, dtype: str) -> str:
    """Write the tables and the figures to results/. Returns the text to print."""
    stem = RESULTS / ("bench-fork" if dtype == FLOAT32 else f"bench-fork-{dtype}")
    table, figures = stem.with_suffix(".md"), stem.with_suffix(".json")
    rows = summarize(pairs)
    bars = checks(rows, pairs, full_length=max_iters == MAX_ITERS)
    seeds = max(map(len, pairs.values()))
    report = f"{markdown(rows, bars, pairs)}\n\n{_notes(seeds, max_iters, dtype)}\n"
    write_text(table, f"# The model family against nanoGPT's fork\n\n{report}")
    write_json(
        figures,
        {
            "max_iters": max_iters,
            "dtype": dtype,
            "machine": machine(),
            "table": [asdict(row) for row in rows],
            "bars": [asdict(check) | {"met": check.met} for check in bars],
            "runs": {variant: [asdict(pair) for pair in of_seeds] for variant, of_seeds in pairs.items()},
        },
    )
    return f"{report}\n{table}: these tables\n{figures}: the figures of every run"


def _notes(seeds: int, max_iters: int, dtype: str) -> str:
    how_often = "one seed" if seeds == 1 else f"{seeds} seeds"
    theirs = (
        "" if dtype == FLOAT32 else f"\nHere the dtype is {dtype}; the fork always uses float32 on a CPU."
    )
    return (
        f"{max_iters:,} training steps, {how_often}. Losses are means over the seeds, in nats per token, of\n"
        "the last model on the whole validation split. Steps are medians; ratios are between neighboring\n"
        f"runs. The busiest expert is that of the worst layer and seed, in the last batch.{theirs}"
    )
