"""Builds the optimizer and the schedule: the only place that reads their switches in the `train` section."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.config.params import Train
from pipeline.model.kinds import kind_of
from pipeline.optim.adamw import AdamW
from pipeline.optim.muon import Muon
from pipeline.optim.optimizer import Optimizer, Rule
from pipeline.optim.schedule import Constant, Schedule, WarmupCosine, WarmupStableDecay

# Of Newton-Schulz, by train.dtype; its squares would overflow in float16.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float32}


def build_optimizer(model: nn.Module, train: Train) -> Optimizer:
    """The optimizer that the `train` section describes, for the parameters of a model."""
    return Optimizer(parameter_groups(model, train))


def parameter_groups(model: nn.Module, train: Train) -> list[dict[str, Any]]:
    """Groups of parameters that are updated alike; `param_names` has their parameters' names.

    A group's learning rate is `lr_scale` times the schedule's. AdamW decays matrices and embeddings, but not
    biases and norms. With Muon, only its own matrices decay: those of the trunk.
    """
    adamw = AdamW(train.beta1, train.beta2)
    rate, decay = train.learning_rate, train.weight_decay
    rules: dict[str, tuple[Rule, float, float]] = {
        "matrix": (adamw, rate, decay),
        "embedding": (adamw, rate, decay),
        "head": (adamw, rate, decay),
        "vector": (adamw, rate, 0.0),
    }
    if train.optimizer == "muon":
        muon = Muon(train.muon_momentum, DTYPES[train.dtype])
        rules |= {
            "matrix": (muon, train.muon_learning_rate, decay),
            "embedding": (adamw, train.embedding_learning_rate, 0.0),
            "head": (adamw, rate, 0.0),
        }
    members: dict[tuple[Rule, float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        members.setdefault(rules[kind_of(name, parameter)], []).append((name, parameter))
    return [
        {
            "params": [parameter for _, parameter in named],
            "param_names": [name for name, _ in named],
            "rule": rule,
            "lr": group_rate,
            "weight_decay": weight_decay,
            "lr_scale": group_rate / rate if rate else 0.0,
        }
        for (rule, group_rate, weight_decay), named in members.items()
    ]


def build_schedule(train: Train) -> Schedule:
    """The learning rate schedule that the `train` section describes."""
    if not train.decay_lr:
        return Constant(train.learning_rate)
    if train.cooldown_start is None:
        return WarmupCosine(train.learning_rate, train.warmup_iters, train.lr_decay_iters, train.min_lr)
    return WarmupStableDecay(
        train.learning_rate, train.warmup_iters, train.cooldown_start, train.lr_decay_iters, train.min_lr
    )
