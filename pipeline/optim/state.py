"""An optimizer's state as tensors by name, which is how checkpoints keep it."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def named_state(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What is remembered between steps, as `<parameter>/<quantity>`; its groups have `param_names`."""
    return {
        f"{name}/{quantity}": tensor
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        for quantity, tensor in optimizer.state.get(parameter, {}).items()
    }


def load_named_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Replace the state by what `named_state` gave, on the devices of the parameters."""
    optimizer.state.clear()
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    for key, tensor in tensors.items():
        name, quantity = key.rsplit("/", 1)
        optimizer.state[parameters[name]][quantity] = tensor.to(parameters[name].device)
