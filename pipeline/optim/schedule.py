"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from pipeline.config.params import Train


def learning_rate(step: int, train: Train) -> float:
    """Linear warmup, then a cosine from `learning_rate` to `min_lr` at `lr_decay_iters`, then `min_lr`."""
    if not train.decay_lr:
        return train.learning_rate
    if step < train.warmup_iters:
        return train.learning_rate * (step + 1) / (train.warmup_iters + 1)
    if step >= train.lr_decay_iters:
        return train.min_lr
    progress = (step - train.warmup_iters) / (train.lr_decay_iters - train.warmup_iters)
    return train.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (train.learning_rate - train.min_lr)
