"""Builds the optimizer and the schedule: the only place that reads their switches in the `train` section."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.config.params import Train
from pipeline.optim.adamw import AdamW
from pipeline.optim.schedule import Constant, Schedule, WarmupCosine


def build_optimizer(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices and embeddings, but not on biases and norms."""
    groups = parameter_groups(model, train.weight_decay)
    return AdamW(groups, lr=train.learning_rate, betas=(train.beta1, train.beta2))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups, with and without weight decay; `param_names` has their parameters' names.

    A group's learning rate is `lr_scale` times the schedule's.
    """
    matrices: list[tuple[str, nn.Parameter]] = []
    vectors: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        # The stacked biases of experts have two dimensions, but are still biases.
        decays = parameter.dim() >= 2 and not name.endswith("bias")
        (matrices if decays else vectors).append((name, parameter))
    return [
        {
            "params": [parameter for _, parameter in named],
            "param_names": [name for name, _ in named],
            "weight_decay": decay,
            "lr_scale": 1.0,
        }
        for named, decay in ((matrices, weight_decay), (vectors, 0.0))
    ]


def build_schedule(train: Train) -> Schedule:
    """The learning rate schedule that the `train` section describes."""
    if not train.decay_lr:
        return Constant(train.learning_rate)
    return WarmupCosine(train.learning_rate, train.warmup_iters, train.lr_decay_iters, train.min_lr)
