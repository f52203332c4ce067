"""From parameters and shards to a trained model: start, continue or reuse the run that they name."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig
from pipeline.config.params import Params
from pipeline.config.published import check_start
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.zeroshot import evaluate_task, open_task
from pipeline.model.build import build_gpt, padded_vocab_size
from pipeline.model.gpt import GPT
from pipeline.model.load import build_with, load_weights
from pipeline.runtime.device import use_device
from pipeline.storage.files import replacing_folder
from pipeline.tokens.batches import check_fits
from pipeline.tokens.shards import Tokens, load_manifest, open_split
from pipeline.tokens.tokenizers import TOKENIZER_FILE, Tokenizer, load_tokenizer
from pipeline.track.console import Console
from pipeline.track.csv_log import CsvLog
from pipeline.train.loop import STATE_FILE, Interrupted, Trainer
from pipeline.train.runs import Run, run_key
from pipeline.weights.names import place_on_hub
from pipeline.weights.saved import WEIGHTS_FILE, Weights, save_config
from pipeline.weights.stored_model import StoredModel, open_model


def fit(params: Params, tokens_folder: Path, runs_folder: Path, say: Callable[[str], None]) -> FittedRun:
    """Train the model that the parameters describe, or what is left of it.

    Raises UserError for what cannot work, before any step is taken, and Interrupted, with the state saved,
    when a signal asks to stop.
    """
    params.check_sections()
    manifest = load_manifest(tokens_folder)
    device = use_device(params.runtime)
    tokens, val = open_split(tokens_folder, "train"), open_split(tokens_folder, "val")
    for split, name in ((tokens, "train"), (val, "val")):
        check_fits(split, params.model.block_size, name)
    tokenizer = load_tokenizer(tokens_folder)
    initial = _initial_model(params, tokenizer, tokens_folder)
    probe = _zeroshot_probe(params, tokenizer, device) if params.log.zeroshot_interval else None
    vocab_size = initial.config.vocab_size if initial else padded_vocab_size(tokenizer.vocab_size)
    config = GPTConfig(**params.model.model_dump(), vocab_size=vocab_size)

    resume_only = params.train.init_from == "resume"
    # What counts is which weights a run starts from, not what their folder is called.
    settings = params.train.model_dump() | {"init_from": initial.sha256 if initial else "scratch"}
    key = run_key(data=manifest.fingerprint, model=config.model_dump(), train=settings)
    fitted = FittedRun(Run(runs_folder / key), config, tokens_folder)
    run = fitted.run
    with run.locked(say):
        if run.metrics() is not None:
            say(f"{run.folder}: finished before, nothing to train")
            return fitted
        checkpoint = run.newest()
        if checkpoint is None and resume_only:
            raise UserError(
                f"train.init_from = resume: no checkpoint in {run.folder}; use init_from = scratch (which "
                "continues an interrupted run of the same parameters too)"
            )
        torch.manual_seed(params.train.seed)
        model = (
            build_with(config, initial.first_positions(config.block_size)) if initial else build_gpt(config)
        )
        trainer = Trainer(
            model=model.to(device),
            train=params.train,
            tokens=tokens,
            val=val,
            token_bytes=tokenizer.token_bytes,
            run=run,
            device=device,
            compile=params.runtime.compile,
            checkpoint_interval=params.runtime.checkpoint_interval,
            log_interval=params.log.log_interval,
            probe=probe,
            probe_interval=params.log.zeroshot_interval,
        )
        if checkpoint:
            trainer.load(checkpoint)
            say(f"{checkpoint}: continuing after step {trainer.state.step:,}")
        else:
            place = place_on_hub(params.train.init_from)
            run.begin(
                {
                    "model": config.model_dump(),
                    "train": settings,
                    "start": {"name": params.train.init_from, "repository": place and place[0]},
                    "data": str(tokens_folder),
                    "tokenizer": manifest.tokenizer_sha256,
                }
            )
            say(f"{run.folder}: training {model.num_params():,} parameters on {device}")
        console = Console(params.train.max_iters, trainer.state.step)
        log = CsvLog(run.log, trainer.state.step)
        try:
            trainer.fit([log, console])
        except Interrupted:
            console.note(
                f"{run.folder}: stopped after step {trainer.state.step:,}; the same command continues"
            )
            raise
        finally:
            log.close()
            console.close()
        about = {"data": manifest.fingerprint, "start": initial.sha256 if initial else None}
        run.finish(_metrics(trainer, tokens, val, params, key) | about)
    return fitted


class FittedRun:
    """A finished run, ready to be published."""

    def __init__(self, run: Run, config: GPTConfig, tokens_folder: Path) -> None:
        self.run = run
        self._config = config
        self._tokens_folder = tokens_folder

    @cached_property
    def metrics(self) -> dict[str, Any]:
        metrics = self.run.metrics()
        assert metrics is not None, "a FittedRun is finished"
        return metrics

    def publish_model(self, folder: Path) -> None:
        """Put the weights that the parameters ask to keep, their config and tokenizer into `folder`."""
        source = self.run.best if self.metrics["saved"] == "best" else self.run.newest()
        assert source is not None
        # Locked, because a process that waited for this run publishes it too.
        with self.run.locked(announce=lambda _: None), replacing_folder(folder) as temporary:
            shutil.copyfile(source / WEIGHTS_FILE, temporary / WEIGHTS_FILE)
            shutil.copyfile(self._tokens_folder / TOKENIZER_FILE, temporary / TOKENIZER_FILE)
            save_config(self._config, temporary)


def _initial_model(params: Params, tokenizer: Tokenizer, tokens_folder: Path) -> StoredModel | None:
    """The model to start from; None for a random start. Raises UserError for one that does not fit."""
    init_from = params.train.init_from
    if init_from in ("scratch", "resume"):
        return None
    try:
        initial = open_model(init_from)
        check_start(params.model, initial.config, init_from)
        own = initial.tokenizer(like=tokenizer)
    except UserError as error:
        message = str(error)
        raise UserError(message if "train.init_from" in message else f"train.init_from: {message}") from None
    if not own.has_the_ids_of(tokenizer):
        raise UserError(
            f"train.init_from = {init_from}: its tokenizer is not that of {tokens_folder}; use its own: "
            f"tokenizer.name = pretrained, tokenizer.model = {init_from}"
        )
    return initial


def _zeroshot_probe(
    params: Params, tokenizer: Tokenizer, device: torch.device
) -> Callable[[GPT], dict[str, float]]:
    """What takes the zero-shot figures while training. Raises UserError for a task that cannot be had."""
    settings, block_size = params.zeroshot, params.model.block_size
    tasks = {name: open_task(name, tokenizer, block_size, settings.limit) for name in settings.tasks}

    def probe(model: GPT) -> dict[str, float]:
        return {
            f"{name}_{figure}": value
            for name, task in tasks.items()
            for figure, value in evaluate_task(task, model, tokenizer, device, settings.batch_size).items()
        }

    return probe


def _metrics(trainer: Trainer, tokens: Tokens, val: Tokens, params: Params, key: str) -> dict[str, Any]:
    """The final figures. The last and the best model are both measured on the whole validation split."""
    state, train = trainer.state, params.train
    final = trainer.evaluate(val, None)
    as_many = max(1, final.tokens // (train.batch_size * params.model.block_size))
    on_train = trainer.evaluate(tokens, as_many)
    best = _best(trainer, val, final)
    steps = state.step * trainer.tokens_per_step
    drawn = Counter(depth for depth in trainer.drawn_depths(0, state.step) if depth is not None)
    return {
        "val_loss": final.loss,
        "best_val_loss": best.loss,
        "train_loss": on_train.loss,
        "val_bpb": final.bits_per_byte,
        "best_val_bpb": best.bits_per_byte,
        "perplexity": final.perplexity,
        "tokens": steps,
        "seconds": round(state.seconds, 3),
        "tokens_per_second": round(steps / state.seconds, 1),
        "params": trainer.model.num_params(),
        "steps": state.step,
        "best_step": state.best_step,
        "saved": "last" if train.always_save_checkpoint else "best",
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "compile": params.runtime.compile,
        "torch": torch.__version__,
        "run": key,
        "init_from": "scratch" if train.init_from == "resume" else train.init_from,
        **({"recurrent_depth_histogram": {str(n): drawn[n] for n in sorted(drawn)}} if drawn else {}),
    }


def _best(trainer: Trainer, val: Tokens, final: Evaluation) -> Evaluation:
    best_step = json.loads((trainer.run.best / STATE_FILE).read_text(encoding="utf-8"))["step"]
    if best_step == trainer.state.step:
        return final
    load_weights(trainer.model, Weights(trainer.run.best / WEIGHTS_FILE))
    return trainer.evaluate(val, None)
