"""The figures of a finished run: results/metrics.json."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from pipeline.config.params import Params
from pipeline.evaluate.evaluation import Evaluation
from pipeline.train.checkpoint import load_best
from pipeline.train.loop import Trainer


def final_metrics(trainer: Trainer, params: Params) -> dict[str, Any]:
    """Metrics of a finished training; evaluates the last and the best model on the whole validation split."""
    state, train = trainer.state, params.train
    final = trainer.evaluate(trainer.data.val, None)
    val_batches = max(1, final.tokens // (train.batch_size * params.model.block_size))
    on_train = trainer.evaluate(trainer.data.train, val_batches)
    best = _evaluate_best(trainer, final)
    tokens = state.step * trainer.tokens_per_step
    drawn = Counter(depth for depth in trainer.drawn_depths(0, state.step) if depth is not None)
    return {
        "val_loss": final.loss,
        "best_val_loss": best.loss,
        "train_loss": on_train.loss,
        "val_bpb": final.bits_per_byte,
        "best_val_bpb": best.bits_per_byte,
        "perplexity": final.perplexity,
        "tokens": tokens,
        "seconds": round(state.seconds, 3),
        "tokens_per_second": round(tokens / state.seconds, 1),
        "params": trainer.model.num_params(),
        "steps": state.step,
        "best_step": state.best[0],
        "saved": "last" if train.always_save_checkpoint else "best",
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "compile": params.runtime.compile,
        "torch": torch.__version__,
        **({"recurrent_depth_histogram": {str(n): drawn[n] for n in sorted(drawn)}} if drawn else {}),
    }


def _evaluate_best(trainer: Trainer, final: Evaluation) -> Evaluation:
    if trainer.state.best[0] == trainer.state.step:
        return final
    load_best(trainer.run.best, trainer.model)
    return trainer.evaluate(trainer.data.val, None)
