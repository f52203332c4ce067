"""Trains a model from parameters and token shards: starts, continues or reuses the run that they identify."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig
from pipeline.config.params import Params
from pipeline.evaluate.zeroshot import evaluate_task, open_task
from pipeline.model.gpt import GPT
from pipeline.runtime.device import use_device
from pipeline.storage.files import replacing_folder
from pipeline.tokens.batches import check_fits
from pipeline.tokens.shards import Manifest, load_manifest, open_split, open_tokenizer
from pipeline.tokens.tokenizers import TOKENIZER_FILE, Tokenizer
from pipeline.track.open import open_trackers
from pipeline.train.init_from import Start
from pipeline.train.loop import Data, Interrupted, Probe, Trainer
from pipeline.train.metrics import final_metrics
from pipeline.train.runs import Run, run_key
from pipeline.weights.model_folder import WEIGHTS_FILE, save_config


def fit(params: Params, tokens_folder: Path, runs_folder: Path, say: Callable[[str], None]) -> FittedRun:
    """Train the model that the parameters describe, continuing an interrupted run if there is one.

    Raises UserError for invalid parameters or data before the first step, and for a loss that is not finite.
    Raises Interrupted, after saving a checkpoint, when a signal asks to stop.
    """
    params.check_sections()
    manifest = load_manifest(tokens_folder)
    device = use_device(params.runtime)
    tokenizer = open_tokenizer(tokens_folder)
    data = _open_data(tokens_folder, params.model.block_size, tokenizer)
    start = Start(params, tokenizer, tokens_folder)
    probe = _zeroshot_probe(params, tokenizer, device) if params.log.zeroshot_interval else None

    settings = params.train.model_dump() | {"init_from": start.weights or "scratch"}
    key = run_key(data=manifest.fingerprint, model=start.config.with_derived(), train=settings)
    run = Run(runs_folder / key)
    fitted = FittedRun(run, start.config, tokens_folder)
    with run.locked(say):
        if run.metrics() is not None:
            run.kept(fitted.metrics["saved"])
            say(f"{run.folder}: already finished, nothing to train")
            return fitted
        checkpoint = run.resume_from(say)
        if checkpoint is None and params.train.init_from == "resume":
            raise UserError(
                f"train.init_from = resume: no checkpoint in {run.folder}; set train.init_from = scratch, "
                "which also continues an interrupted run with the same parameters"
            )
        trainer = Trainer(start.build().to(device), params, data, run, device, probe)
        if checkpoint:
            trainer.load(checkpoint)
            say(f"{checkpoint}: continuing after step {trainer.state.step:,}")
        else:
            run.begin(_description(start, settings, tokens_folder, manifest))
            say(f"{run.folder}: training {trainer.model.num_params():,} parameters on {device}")
        with open_trackers(run.log, params, trainer.state.step) as trackers:
            try:
                trainer.fit(trackers)
            except Interrupted:
                step = trainer.state.step
                trackers.note(f"{run.folder}: stopped after step {step:,}; run the same command to continue")
                raise
        about = {"run": key, "data": manifest.fingerprint, "start": start.weights, "init_from": start.name}
        run.finish(final_metrics(trainer, params) | about)
    return fitted


class FittedRun:
    """A finished run, whose model can be published."""

    def __init__(self, run: Run, config: GPTConfig, tokens_folder: Path) -> None:
        self.run = run
        self._config = config
        self._tokens_folder = tokens_folder

    @cached_property
    def metrics(self) -> dict[str, Any]:
        metrics = self.run.metrics()
        assert metrics is not None, "metrics exist only for a finished run"
        return metrics

    def publish_model(self, folder: Path) -> None:
        """Write the best or last weights, as the parameters say, with config and tokenizer to `folder`."""
        # Locked, because another process that waited for this run publishes it too.
        with self.run.locked(announce=lambda _: None), replacing_folder(folder) as temporary:
            source = self.run.kept(self.metrics["saved"])
            shutil.copyfile(source / WEIGHTS_FILE, temporary / WEIGHTS_FILE)
            shutil.copyfile(self._tokens_folder / TOKENIZER_FILE, temporary / TOKENIZER_FILE)
            save_config(self._config, temporary)


def _open_data(tokens_folder: Path, block_size: int, tokenizer: Tokenizer) -> Data:
    train, val = open_split(tokens_folder, "train"), open_split(tokens_folder, "val")
    for split, name in ((train, "train"), (val, "val")):
        check_fits(len(split), block_size, name)
    return Data(train, val, tokenizer.token_bytes)


def _description(
    start: Start, settings: dict[str, Any], tokens_folder: Path, manifest: Manifest
) -> dict[str, Any]:
    """The content of run.json."""
    return {
        "model": start.config.model_dump(),
        "train": settings,
        "start": {"name": start.name, "repository": start.repository},
        "data": str(tokens_folder),
        "tokenizer": manifest.tokenizer_sha256,
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
