"""Optimizer state as named tensors, the form that checkpoints store."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def named_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state tensors, named `<parameter>/<quantity>`; every group needs `param_names`."""
    return {
        f"{name}/{quantity}": tensor
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        for quantity, tensor in optimizer.state.get(parameter, {}).items()
    }


def load_named_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Restore the state that `named_state` returned, moving each tensor to its parameter's device."""
    optimizer.state.clear()
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    for key, tensor in tensors.items():
        name, quantity = key.rsplit("/", 1)
        optimizer.state[parameters[name]][quantity] = tensor.to(parameters[name].device)
