"""The figures of a finished run, and the few of them that people compare: results/metrics.json."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from pipeline.config.params import Params
from pipeline.distributed.world import world
from pipeline.evaluate.evaluation import Evaluation
from pipeline.train.checkpoint import load_best
from pipeline.train.loop import Trainer

COMPARED = ("val_loss", "val_bpb", "best_step", "tokens", "seconds", "params")  # the rest is in run.json


def final_metrics(trainer: Trainer, params: Params) -> dict[str, Any]:
    """Metrics of a finished training; evaluates the last and the best model on the whole validation split.

    `val_loss`, `val_bpb`, `perplexity` and `train_loss` are those of the model that is published: the best
    one, or the last with `train.always_save_checkpoint`.
    """
    state, train = trainer.state, params.train
    last = trainer.evaluate(trainer.data.val, None)
    val_batches = max(1, last.tokens // (train.batch_size * params.model.block_size))
    keeps_last = train.always_save_checkpoint or state.best[0] == state.step
    on_train = trainer.evaluate(trainer.data.train, val_batches) if keeps_last else None
    best = _evaluate_best(trainer, last)
    on_train = on_train or trainer.evaluate(trainer.data.train, val_batches)
    kept = last if keeps_last else best
    tokens = state.step * trainer.tokens_per_step
    drawn = Counter(depth for depth in trainer.drawn_depths(0, state.step) if depth is not None)
    return {
        "val_loss": kept.loss,
        "val_bpb": kept.bits_per_byte,
        "best_step": state.best[0],
        "tokens": tokens,
        "seconds": round(state.seconds, 3),
        "params": trainer.model.num_params(),
        "perplexity": kept.perplexity,
        "train_loss": on_train.loss,
        "best_val_loss": best.loss,
        "last_val_loss": last.loss,
        "tokens_per_second": round(tokens / state.seconds, 1),
        "steps": state.step,
        "saved": "last" if train.always_save_checkpoint else "best",
        "device": str(trainer.device),
        "processes": world().size,
        "threads": torch.get_num_threads(),
        "compile": params.runtime.compile,
        "torch": torch.__version__,
        **({"recurrent_depth_histogram": {str(n): drawn[n] for n in sorted(drawn)}} if drawn else {}),
    }


def _evaluate_best(trainer: Trainer, last: Evaluation) -> Evaluation:
    if trainer.state.best[0] == trainer.state.step:
        return last
    load_best(trainer.run.best, trainer.model)
    return trainer.evaluate(trainer.data.val, None)
