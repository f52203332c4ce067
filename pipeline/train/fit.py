"""Trains a model from parameters and token shards: starts, continues or reuses the run that they identify."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig
from pipeline.config.params import Params
from pipeline.distributed.share import check_processes
from pipeline.distributed.world import world
from pipeline.evaluate.zeroshot import evaluate_task, open_task
from pipeline.model.gpt import GPT
from pipeline.runtime.device import use_device
from pipeline.storage.checksums import save_folder, write_record
from pipeline.storage.files import link, write_json, write_text
from pipeline.storage.lock import writing
from pipeline.tokens.batches import check_fits
from pipeline.tokens.shards import load_manifest, open_split, open_tokenizer
from pipeline.tokens.tokenizers import TOKENIZER_FILE, Tokenizer
from pipeline.track.open import Trackers, open_trackers
from pipeline.train.checkpoint import LOG_FILE, read_state, take_weights
from pipeline.train.earlier import (
    Origin,
    continue_from,
    find_continued,
    find_origin,
    find_run_of_other_code,
    with_best,
)
from pipeline.train.identity import Identity, code_of_steps
from pipeline.train.init_from import Start
from pipeline.train.loop import Data, Interrupted, Probe, Trainer
from pipeline.train.metrics import COMPARED, final_metrics
from pipeline.train.runs import Keep, Run
from pipeline.train.sizing import check_memory, check_room_for_run
from pipeline.weights.model_folder import WEIGHTS_FILE, Weights, save_config


def fit(
    params: Params,
    tokens_folder: Path,
    runs_folder: Path,
    say: Callable[[str], None],
    live: Path | None = None,
) -> FittedRun:
    """Train the model that the parameters describe, from the furthest point that earlier work has reached.

    That is the end, for a finished run; the run's own newest checkpoint; or one of another run that took the
    same steps. While it trains, `live` is a link to its log. Raises UserError for invalid parameters or data
    before the first step, NotFinite for a loss or a gradient that is not finite, and Interrupted, after a
    checkpoint was saved, when a signal asks to stop.
    """
    ranks = world()
    say = say if ranks.is_main else _nothing
    ranks.together(lambda: check_processes(ranks.size, params.runtime, params.train))
    prepared = ranks.main_first(lambda: _Prepared(params, tokens_folder))
    start, device = prepared.start, prepared.device
    ranks.check_equal(prepared.facts)
    identity, origin = ranks.from_main(lambda: _choose(prepared.identity, params, runs_folder, say))
    runtime = params.runtime
    keep = Keep(runtime.keep_checkpoints, runtime.keep_every, params.train.cooldown_start)
    run = Run(runs_folder / identity.key, keep)
    describe = partial(_description, prepared, identity, tokens_folder)

    def begin() -> tuple[dict[str, Any] | None, Path | None, Origin | None]:
        """The metrics if the run is finished, else the checkpoint to continue from, and whose it is."""
        if not run.finished.exists():
            check_memory(params, start.config, device, note=say)
            check_room_for_run(params, start.config, run)
        held.enter_context(run.locked(say))
        run.restore_facts(describe(None), say)
        metrics = run.metrics(say)
        if metrics is not None:
            run.kept(metrics)
            say(f"{run.folder}: already finished, nothing to train")
            return metrics, None, None
        checkpoint, of = run.resume_from(say), origin
        if checkpoint is None:
            of = of or find_origin(identity, runs_folder, say)
            run.begin(describe(of), say)
            if of is not None:
                continue_from(of, run)
                checkpoint = run.resume_from(say)
        return None, checkpoint, of

    with ExitStack() as held:
        metrics, checkpoint, origin = ranks.from_main(begin)
        if metrics is not None:
            return FittedRun(run, metrics, start.config, tokens_folder)
        model = start.build(Weights(checkpoint / WEIGHTS_FILE) if checkpoint and ranks.is_main else None)
        if ranks.size > 1:
            take_weights(model, model.state_dict() if ranks.is_main else None)
        trainer = Trainer(model, params, prepared.data, run, device, prepared.probe)
        if checkpoint:
            trainer.load(checkpoint)
            say(
                f"{origin.checkpoint if origin else checkpoint}: continuing after step {trainer.state.step:,}"
            )
        else:
            say(f"{run.folder}: training {trainer.model.num_params():,} parameters on {trainer.where}")
        step = trainer.state.step
        with open_trackers(run.folder, params, step) if ranks.is_main else Trackers([], None) as trackers:
            if live is not None and ranks.is_main:
                link(live, run.log)
            try:
                trainer.fit(trackers, trackers.tick)
            except Interrupted:
                step = trainer.state.step
                trackers.note(f"{run.folder}: stopped after step {step:,}; run the same command to continue")
                raise
        about = {"run": identity.key, "data": prepared.manifest.fingerprint, "start": start.weights}
        metrics = final_metrics(trainer, params) | about | {"init_from": start.name}
        ranks.from_main(lambda: run.finish(metrics))
    return FittedRun(run, metrics, start.config, tokens_folder)


def is_finished(params: Params, tokens_folder: Path, runs_folder: Path) -> bool:
    """Whether `fit` would find nothing left to train. Raises UserError for invalid parameters or data."""
    return Run(runs_folder / _Prepared(params, tokens_folder).identity.key).finished.exists()


def _nothing(text: str) -> None:
    """Say nothing."""


class _Prepared:
    """What the parameters and the tokens give before it is known what is left to train."""

    def __init__(self, params: Params, tokens_folder: Path) -> None:
        """Raises UserError for invalid parameters or data."""
        params.check_sections()
        self.manifest = load_manifest(tokens_folder)
        self.device = use_device(params.runtime)
        tokenizer = open_tokenizer(tokens_folder)
        self.data = _open_data(tokens_folder, params.model.block_size, tokenizer)
        self.start = Start(params, tokenizer, tokens_folder)
        self.probe = _zeroshot_probe(params, tokenizer, self.device) if params.log.zeroshot_interval else None
        settings = params.train.model_dump() | {"init_from": self.start.weights or "scratch"}
        config = self.start.config.with_derived()
        self.identity = Identity(self.manifest.fingerprint, config, settings, code_of_steps())
        self._params = params

    @property
    def facts(self) -> dict[str, str]:
        """What has to be the same on all ranks."""
        identity, params = self.identity, self._params
        own = {"device", "threads", "workers", "executor"}  # of each machine
        how = {
            "runtime": params.runtime.model_dump(exclude=own),
            "log": params.log.model_dump(),
            "zeroshot": params.zeroshot.model_dump(),
        }
        return {
            "the tokens": identity.data,
            "the parameters": _hash(identity.model | identity.train | how),
            "the initial weights": self.start.weights or "",
            "the code": _hash(identity.code),
        }


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class FittedRun:
    """A finished run, whose results can be published."""

    run: Run
    metrics: dict[str, Any]
    config: GPTConfig
    tokens_folder: Path

    def publish(self, model: Path, log: Path, metrics: Path, record: Path) -> None:
        """Write the model to a folder, the log and the metrics to files, and then the record of them.

        The metrics are the few that people compare. The record has everything else that is known of the run,
        and the checksums of the other files: results without it, or that differ from it, are not those of one
        run.
        """
        about = self.run.facts()
        with writing(model):
            record.unlink(missing_ok=True)
            self.publish_model(model)
            write_text(log, (self.run.finished / LOG_FILE).read_text(encoding="utf-8"))
            write_json(metrics, {name: self.metrics[name] for name in COMPARED})
            files = [*sorted(path for path in model.iterdir() if path.is_file()), log, metrics]
            finished = {name: value for name, value in self.metrics.items() if name not in COMPARED}
            write_record(record, {"run": self.run.folder.name, **about, "finished": finished}, files)

    def publish_model(self, folder: Path) -> None:
        """Write the best or last weights, as the parameters say, with config and tokenizer to `folder`."""

        def write(temporary: Path) -> None:
            source = self.run.kept(self.metrics)
            shutil.copyfile(source / WEIGHTS_FILE, temporary / WEIGHTS_FILE)
            shutil.copyfile(self.tokens_folder / TOKENIZER_FILE, temporary / TOKENIZER_FILE)
            save_config(self.config, temporary)

        # Locked, because another process that waited for this run publishes it too.
        with self.run.locked(announce=lambda _: None):
            save_folder(folder, write)


def _choose(
    identity: Identity, params: Params, runs_folder: Path, say: Callable[[str], None]
) -> tuple[Identity, Origin | None]:
    """The run to begin or to continue; with the checkpoint of an earlier one if other code trained that.

    Raises UserError for `train.init_from = resume` without anything to continue.
    """
    own = Run(runs_folder / identity.key)
    if own.finished.exists() or own.checkpoints():
        return identity, None
    earlier = find_run_of_other_code(identity, runs_folder)
    if params.train.init_from != "resume":
        if earlier is not None:
            run, changed = earlier
            say(
                f"{run.folder} is this run by other code, and is kept; training from the start, because of "
                f"{_some(changed)}; to continue it instead: train.init_from = resume"
            )
        return identity, None
    if (continued := find_continued(identity, runs_folder)) is not None:
        return continued, None
    if earlier is None:
        if find_origin(identity, runs_folder, lambda _: None) is not None:
            return identity, None
        raise UserError(
            f"train.init_from = resume: no checkpoint in {own.folder}; set train.init_from = scratch, "
            "which also continues an interrupted run with the same parameters"
        )
    run, _ = earlier
    mixed = replace(identity, after=run.folder.name)
    checkpoint = run.newest()
    assert checkpoint is not None, "it was found by its checkpoint"
    origin = with_best(run, checkpoint, read_state(checkpoint))
    if origin is None:
        raise UserError(f"{run.best}: not the best model at {checkpoint}; set train.init_from = scratch")
    return mixed, origin


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")


def _open_data(tokens_folder: Path, block_size: int, tokenizer: Tokenizer) -> Data:
    first = world().local_rank == 0  # hashes the shards that this machine has, for all of its ranks
    train, val = (open_split(tokens_folder, split, verify=first) for split in ("train", "val"))
    for split, name in ((train, "train"), (val, "val")):
        check_fits(len(split), block_size, name)
    return Data(train, val, tokenizer.token_bytes)


def _description(
    prepared: _Prepared, identity: Identity, tokens_folder: Path, origin: Origin | None
) -> dict[str, Any]:
    """The content of run.json."""
    start = prepared.start
    return {
        "model": start.config.model_dump(),
        "train": identity.train,
        "start": {"name": start.name, "repository": start.repository},
        "continues": origin and {"run": origin.run.folder.name, "step": origin.state.step},
        "data": str(tokens_folder),
        "tokenizer": prepared.manifest.tokenizer_sha256,
        "identity": asdict(identity),
    }


def _zeroshot_probe(params: Params, tokenizer: Tokenizer, device: torch.device) -> Probe:
    """The function that evaluates zero-shot tasks during training. Raises UserError if a task cannot load."""
    settings, block_size = params.zeroshot, params.model.block_size
    tasks = {name: open_task(name, tokenizer, block_size, settings.limit) for name in settings.tasks}

    def probe(model: GPT) -> dict[str, float]:
        return {
            f"{name}_{figure}": value
            for name, task in tasks.items()
            for figure, value in evaluate_task(task, model, tokenizer, device, settings.batch_size).items()
        }

    return probe
