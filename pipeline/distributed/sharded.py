"""Tensors of which each rank may hold a piece: DTensors, as FSDP makes them. Plain ones are whole."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn


def is_divided(model: nn.Module) -> bool:
    """Whether each rank has pieces of this model's tensors."""
    return hasattr(next(model.parameters()), "full_tensor")


def without_gradients(model: nn.Module) -> AbstractContextManager[object]:
    """For an evaluation: inference mode, but where tensors are gathered that training will use again."""
    return torch.no_grad() if is_divided(model) else torch.inference_mode()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor."""
    own: Any = getattr(tensor, "to_local", None)  # not isinstance: importing DTensor takes a second
    return tensor if own is None else own()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor, on every rank; all of them have to call this."""
    full: Any = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def piece(tensor: torch.Tensor, like: Any) -> torch.Tensor:
    """What this rank holds of a whole tensor if it is divided as `like` is, on the device of `like`."""
    if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    on_device = tensor.to(like.device)
    divided = distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
    return divided.to_local()


def as_divided(pieces: torch.Tensor, like: Any) -> torch.Tensor:
    """The tensor of which the ranks hold these pieces, divided as `like` is."""
    if not hasattr(like, "full_tensor"):
        return pieces
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        pieces, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
