"""Loads a stored model's config and weights into a GPT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig
from pipeline.model.build import build_on_meta
from pipeline.model.gpt import GPT
from pipeline.model.size import check_size
from pipeline.weights.model_folder import Weights
from pipeline.weights.open import StoredModel, open_model


def load_model(model: StoredModel | str | Path, device: torch.device | str = "cpu") -> GPT:
    """Load a model, given as a StoredModel or by name, onto a device, in evaluation mode.

    Raises UserError if there is no such model, or if its weights do not fit its config.
    """
    stored = model if isinstance(model, StoredModel) else open_model(model)
    return build_with(stored.config, stored.weights).to(device).eval()


def build_with(config: GPTConfig, weights: Weights) -> GPT:
    """A model on the CPU with these weights. Random initialization is skipped to save time.

    Raises UserError if the weights do not fit the config.
    """
    check_size(config, len(weights.shapes), weights.path)
    model = build_on_meta(config)
    load_weights(model, weights)
    return model


def load_weights(model: GPT, weights: Weights) -> None:
    """Copy weights into `model`, which stays on its device.

    Raises UserError that names the tensors that do not fit, and then leaves the model unchanged.
    """
    own, shapes = model.state_dict(), weights.shapes
    misshapen = {name for name in own.keys() & shapes.keys() if own[name].shape != shapes[name]}
    for problem, names in (
        ("lacks", own.keys() - shapes.keys()),
        ("has unknown", shapes.keys() - own.keys()),
        ("has the wrong shape for", misshapen),
    ):
        if names:
            some = ", ".join(sorted(weights.name_in_file(name) for name in names)[:5])
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise UserError(f"{weights.path}: {problem} {some}{more}; it belongs to another model")
    if next(model.parameters()).is_meta:
        model.load_state_dict({name: weights.read(name) for name in own}, assign=True)
    else:
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(weights.read(name))


def parameter_shapes(config: GPTConfig) -> Mapping[str, tuple[int, ...]]:
    """Name and shape of every tensor in a saved model with this config. Allocates no tensor memory."""
    return {name: tuple(tensor.shape) for name, tensor in build_on_meta(config).state_dict().items()}
