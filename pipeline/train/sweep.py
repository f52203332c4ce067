"""A sweep of ordinary runs over model sizes and training tokens, trained one by one or several at once.

Each run is found in runs/ by what determines it, like any other. So a sweep that was stopped or killed
continues with what is missing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from pipeline.config.errors import UserError, machine_refusal
from pipeline.config.params import Params
from pipeline.config.paths import LIVE, runs_folder, tokens_folder
from pipeline.model.size import model_size
from pipeline.runtime.stop import stop_requested
from pipeline.storage.machine import cores
from pipeline.train.fit import fit, is_finished
from pipeline.train.loop import Interrupted
from pipeline.train.sizing import expected_config

SIZES = (0.4, 0.6, 0.8, 1.0, 1.2)  # of the active model's width and layers, if no sizes are given
LARGER = (1.6, 2.0, 3.0)  # where a model of one or two heads leaves too few of these
TOKENS = (0.125, 0.25, 0.5, 1.0)  # of the active training's tokens, if no budgets are given
FEWEST = 3  # sizes, and budgets: the law has two constants for each, and one for both
SECONDS_BETWEEN_LOOKS = 0.5  # at signals, while others train


@dataclass(frozen=True, order=True)
class Size:
    """The size of a model; whatever else it has is that of the active one."""

    n_layer: int
    n_embd: int

    def __str__(self) -> str:
        return f"{self.n_layer}x{self.n_embd}"


@dataclass(frozen=True)
class PlannedRun:
    """A run of the sweep, before or after it was trained."""

    size: Size
    params: Params = field(repr=False)
    parameters: int
    tokens: int
    flops: float  # forward and backward, all steps


@dataclass(frozen=True)
class TrainedRun:
    """What came of a run: the name of its folder in runs/, and its metrics."""

    run: PlannedRun
    key: str
    metrics: dict[str, Any]


def default_sizes(params: Params) -> list[Size]:
    """Sizes around that of the active model, with heads as wide and as many layers in proportion."""
    model, group = params.model, _group(params)
    found: set[Size] = set()
    for share in (*SIZES, *LARGER):
        if share in SIZES or len(found) < FEWEST:
            heads = group * max(1, round(share * model.n_head / group))
            found.add(Size(max(1, round(share * model.n_layer)), heads * (model.n_embd // model.n_head)))
    return sorted(found)


def default_tokens(params: Params) -> list[int]:
    """Budgets up to the active training's tokens."""
    step = _tokens_per_step(params)
    return sorted({max(1, round(share * params.train.max_iters)) * step for share in TOKENS})


def plan(params: Params, sizes: Sequence[Size], budgets: Sequence[int]) -> list[list[PlannedRun]]:
    """The runs of each size with ascending tokens, the largest size first: so the time left is known early.

    A longer run of the same size goes on from a shorter one if the schedule is the same up to there. Raises
    UserError for sizes and budgets that no law can be fitted to, and those that cannot be trained.
    """
    if params.train.init_from != "scratch" or params.train.eval_only:
        what = "eval_only = true" if params.train.eval_only else f"init_from = {params.train.init_from}"
        raise UserError(
            f"train.{what}: a sweep trains models of many sizes; set init_from = scratch and eval_only = "
            "false (interrupted runs continue anyway)"
        )
    budgets = _whole_steps(params, budgets)
    for name, values in (("sizes", set(sizes)), ("token budgets of whole steps", set(budgets))):
        if len(values) < FEWEST:
            raise UserError(f"{len(values)} different {name}: a scaling law needs {FEWEST}; name more")
    settings = _evaluating_seldom(params, budgets[0])
    plans = [[_planned(params, size, tokens, settings) for tokens in budgets] for size in sorted(set(sizes))]
    # One size of each number of parameters: a loop has as many with any number of layers.
    different = {runs[0].parameters: runs for runs in plans}
    if len(different) < FEWEST:
        raise UserError(
            f"sizes of {len(different)} different numbers of parameters: a scaling law needs {FEWEST}; name "
            "more, of other widths"
        )
    return sorted(different.values(), key=lambda runs: -runs[-1].flops)


def train_sweep(
    plans: Sequence[Sequence[PlannedRun]], jobs: int, say: Callable[[str], None]
) -> Iterator[TrainedRun]:
    """Train what is not trained yet, in this process or, with several jobs, each run in one of its own.

    Raises Interrupted, after all runs in progress have saved, when a signal asks to stop.
    """
    if jobs == 1:
        for run in (run for runs in plans for run in runs):
            yield _trained(run, say)
        return
    missing = []
    for runs in plans:
        left = [run for run in runs if not is_finished(run.params, tokens_folder(run.params), runs_folder())]
        for run in runs:
            if run not in left:  # no process has to start for it
                yield _trained(run, lambda _: None, live=None)
        missing += [left] if left else []
    yield from _several(missing, jobs)


def _whole_steps(params: Params, budgets: Sequence[int]) -> list[int]:
    """Ascending budgets of whole steps: those that would be the same run count once."""
    step = _tokens_per_step(params)
    for tokens in budgets:
        if round(tokens / step) < 1:
            raise UserError(f"{tokens:,} tokens: less than a step of {step:,}; train on more")
    return sorted({round(tokens / step) * step for tokens in budgets})


def _evaluating_seldom(params: Params, fewest_tokens: int) -> Params:
    """The parameters with only the evaluations without which no run could go on from a shorter one.

    Those are where the cooldown of the shortest run starts, and its multiples, where the cooldowns of runs
    that are so many times as long start. The sweep needs the loss of each last model, which is evaluated
    anyway.
    """
    train = params.train
    steps = max(1, round(fewest_tokens / _tokens_per_step(params)))
    shortest = train.model_copy(update={"max_iters": steps, "lr_decay_iters": steps})
    changes = {
        "train.always_save_checkpoint": "true",
        "train.eval_iters": 1,
        "train.eval_interval": shortest.cooldown_start or max(1, train.max_iters),
        "runtime.checkpoint_interval": params.runtime.checkpoint_interval or train.eval_interval,
    }
    return params.with_overrides([f"{name}={value}" for name, value in changes.items()])


def _planned(params: Params, size: Size, tokens: int, settings: Params) -> PlannedRun:
    model, train = params.model, params.train
    head, steps = model.n_embd // model.n_head, round(tokens / _tokens_per_step(params))
    if size.n_embd % (head * _group(params)):
        raise UserError(
            f"size {size}: {size.n_embd} is no multiple of {head * _group(params)}, the width of the active "
            "model's heads that share keys and values; choose one that is"
        )
    heads = size.n_embd // head
    changes = {
        "model.n_layer": size.n_layer,
        "model.n_embd": size.n_embd,
        "model.n_head": heads,
        "model.n_kv_head": "" if model.n_kv_head is None else heads // _group(params),
        "train.max_iters": steps,
        "train.lr_decay_iters": steps,
        "train.warmup_iters": min(train.warmup_iters, steps // 4),
    }
    changed = settings.with_overrides([f"{name}={value}" for name, value in changes.items()])
    config = expected_config(changed)
    assert config is not None, "the tokens are there, so the vocabulary is known"
    tokens = steps * _tokens_per_step(params)
    about = model_size(config)
    return PlannedRun(size, changed, about.parameters, tokens, float(about.flops_per_token * tokens))


def _group(params: Params) -> int:
    """Query heads that share one head of keys and values."""
    return params.model.n_head // (params.model.n_kv_head or params.model.n_head)


def _tokens_per_step(params: Params) -> int:
    train = params.train
    return train.batch_size * train.gradient_accumulation_steps * params.model.block_size


def _trained(run: PlannedRun, say: Callable[[str], None], live: Path | None = LIVE) -> TrainedRun:
    fitted = fit(run.params, tokens_folder(run.params), runs_folder(), say, live)
    return TrainedRun(run, fitted.run.folder.name, fitted.metrics)


def _several(plans: Sequence[Sequence[PlannedRun]], jobs: int) -> Iterator[TrainedRun]:
    """Train up to `jobs` runs at once; of one size in turn, because a longer one goes on from a shorter."""
    waiting = [list(runs) for runs in plans]
    working: dict[Connection, tuple[Any, list[PlannedRun]]] = {}
    with stop_requested() as stop:
        while waiting or working:
            while waiting and len(working) < jobs and stop() is None:
                runs = waiting.pop(0)
                connection, process = _start(runs.pop(0), jobs)
                working[connection] = process, runs
            ready = wait(list(working), timeout=SECONDS_BETWEEN_LOOKS)
            if (number := stop()) is not None:
                _stop([process for process, _ in working.values()])
                raise Interrupted(number)
            for connection in (one for one in list(working) if one in ready):
                process, runs = working.pop(connection)
                try:
                    yield _received(connection, process)
                except BaseException:
                    _stop([process for process, _ in working.values()])
                    raise
                if runs:
                    waiting.insert(0, runs)


def _start(run: PlannedRun, jobs: int) -> tuple[Connection, Any]:
    context = multiprocessing.get_context("spawn")
    connection, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_train_apart, args=(theirs, run, max(1, cores() // jobs)))
    process.start()
    theirs.close()  # so that its end is noticed here
    return connection, process


def _stop(processes: Sequence[Any]) -> None:
    """Ask processes to save and end, and wait until they have."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def _received(connection: Connection, process: Any) -> TrainedRun:
    try:
        found = connection.recv()
    except EOFError:
        process.join()
        raise UserError(
            f"a training process ended with status {process.exitcode}, perhaps for lack of memory; what it "
            "saved is kept: run the same command again, with fewer jobs"
        ) from None
    process.join()
    if isinstance(found, BaseException):
        raise found
    assert isinstance(found, TrainedRun)
    return found


def _train_apart(connection: Connection, run: PlannedRun, threads: int) -> None:
    """Train in a process of its own, whose progress nobody sees, and send the result or the error."""
    os.setpgrp()  # Ctrl-C reaches the sweep alone, which passes it on once: a second signal would kill this
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    runtime = run.params.runtime
    if runtime.threads is None:
        threaded = runtime.model_copy(update={"threads": threads})
        run = replace(run, params=run.params.model_copy(update={"runtime": threaded}))
    try:
        connection.send(_trained(run, lambda _: None, live=None))
    except Interrupted:
        sys.exit(128 + signal.SIGTERM)
    except UserError as error:
        connection.send(error)
    except Exception as error:
        refused = machine_refusal(error)
        connection.send(UserError(refused) if refused else RuntimeError(traceback.format_exc()))
