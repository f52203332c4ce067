"""Trains a model from parameters and token shards: starts, continues or reuses the run that they identify."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig
from pipeline.config.params import Params
from pipeline.evaluate.zeroshot import evaluate_task, open_task
from pipeline.model.gpt import GPT
from pipeline.runtime.device import use_device
from pipeline.storage.checksums import save_folder, write_record
from pipeline.storage.files import link, write_json, write_text
from pipeline.storage.lock import writing
from pipeline.tokens.batches import check_fits
from pipeline.tokens.shards import Manifest, load_manifest, open_split, open_tokenizer
from pipeline.tokens.tokenizers import TOKENIZER_FILE, Tokenizer
from pipeline.track.open import open_trackers
from pipeline.train.checkpoint import LOG_FILE, read_state
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
    params.check_sections()
    manifest = load_manifest(tokens_folder)
    device = use_device(params.runtime)
    tokenizer = open_tokenizer(tokens_folder)
    data = _open_data(tokens_folder, params.model.block_size, tokenizer)
    start = Start(params, tokenizer, tokens_folder)
    probe = _zeroshot_probe(params, tokenizer, device) if params.log.zeroshot_interval else None

    settings = params.train.model_dump() | {"init_from": start.weights or "scratch"}
    identity = Identity(manifest.fingerprint, start.config.with_derived(), settings, code_of_steps())
    identity, origin = _choose(identity, params, runs_folder, say)
    runtime = params.runtime
    keep = Keep(runtime.keep_checkpoints, runtime.keep_every, params.train.cooldown_start)
    run = Run(runs_folder / identity.key, keep)
    if not run.finished.exists():
        check_memory(params, start.config, device, note=say)
        check_room_for_run(params, start.config, run)
    with run.locked(say):
        run.restore_facts(_description(start, identity, tokens_folder, manifest, None), say)
        metrics = run.metrics(say)
        if metrics is not None:
            run.kept(metrics)
            say(f"{run.folder}: already finished, nothing to train")
            return FittedRun(run, metrics, start.config, tokens_folder)
        checkpoint = run.resume_from(say)
        if checkpoint is None:
            origin = origin or find_origin(identity, runs_folder, say)
            run.begin(_description(start, identity, tokens_folder, manifest, origin), say)
            if origin is not None:
                continue_from(origin, run)
                checkpoint = run.resume_from(say)
        model = start.build(Weights(checkpoint / WEIGHTS_FILE) if checkpoint else None)
        trainer = Trainer(model.to(device), params, data, run, device, probe)
        if checkpoint:
            trainer.load(checkpoint)
            say(
                f"{origin.checkpoint if origin else checkpoint}: continuing after step {trainer.state.step:,}"
            )
        else:
            say(f"{run.folder}: training {trainer.model.num_params():,} parameters on {device}")
        with open_trackers(run.folder, params, trainer.state.step) as trackers:
            if live is not None:
                link(live, run.log)
            try:
                trainer.fit(trackers, trackers.tick)
            except Interrupted:
                step = trainer.state.step
                trackers.note(f"{run.folder}: stopped after step {step:,}; run the same command to continue")
                raise
        about = {"run": identity.key, "data": manifest.fingerprint, "start": start.weights}
        metrics = final_metrics(trainer, params) | about | {"init_from": start.name}
        run.finish(metrics)
    return FittedRun(run, metrics, start.config, tokens_folder)


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
    train, val = open_split(tokens_folder, "train"), open_split(tokens_folder, "val")
    for split, name in ((train, "train"), (val, "val")):
        check_fits(len(split), block_size, name)
    return Data(train, val, tokenizer.token_bytes)


def _description(
    start: Start, identity: Identity, tokens_folder: Path, manifest: Manifest, origin: Origin | None
) -> dict[str, Any]:
    """The content of run.json."""
    return {
        "model": start.config.model_dump(),
        "train": identity.train,
        "start": {"name": start.name, "repository": start.repository},
        "continues": origin and {"run": origin.run.folder.name, "step": origin.state.step},
        "data": str(tokens_folder),
        "tokenizer": manifest.tokenizer_sha256,
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
