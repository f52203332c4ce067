"""Optimizer state as named tensors, the form that checkpoints store."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from pipeline.distributed.sharded import as_divided, piece


def named_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state tensors, named `<parameter>/<quantity>`; every group needs `param_names`."""
    return {
        f"{name}/{quantity}": tensor
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        for quantity, tensor in optimizer.state.get(parameter, {}).items()
    }


def load_named_state(optimizer: torch.optim.Optimizer, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Restore the state that `named_state` named, moving each tensor to where its parameter is."""
    optimizer.state.clear()
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    for key, tensor in tensors:
        name, quantity = key.rsplit("/", 1)
        parameter = parameters[name]
        own = piece(tensor, parameter)
        restored = as_divided(own, parameter) if tensor.shape == parameter.shape else own
        optimizer.state[parameter][quantity] = restored
