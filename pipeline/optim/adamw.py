"""AdamW with weight decay on matrices only, its state as named tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw

from pipeline.config.params import Train

EPSILON = 1e-8


class AdamW:
    """AdamW (Loshchilov and Hutter 2019): matrices and embeddings decay, biases and norms do not.

    It runs PyTorch's own fused kernel. `torch.optim.AdamW` does too, but imports the compiler with it: a
    second and 75 MB at every start, for nothing.
    """

    def __init__(self, model: nn.Module, train: Train) -> None:
        self._parameters = dict(model.named_parameters())
        self._betas = (train.beta1, train.beta2)
        self._state: dict[str, dict[str, torch.Tensor]] = {}
        matrices = [
            name
            for name, parameter in self._parameters.items()
            if parameter.dim() >= 2 and not name.endswith("bias")  # those of several experts are stacked
        ]
        vectors = [name for name in self._parameters if name not in matrices]
        self._groups = ((matrices, train.weight_decay), (vectors, 0.0))
        self.learning_rate = train.learning_rate

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameters, in the form in which torch's GradScaler looks for them."""
        return [{"params": list(self._parameters.values())}]

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        beta1, beta2 = self._betas
        for names, weight_decay in self._groups:
            gradients = {name: self._parameters[name].grad for name in names}
            updated = {name: gradient for name, gradient in gradients.items() if gradient is not None}
            states = [self._state_of(name) for name in updated]
            adamw(
                [self._parameters[name] for name in updated],
                list(updated.values()),
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=self.learning_rate,
                weight_decay=weight_decay,
                eps=EPSILON,
                maximize=False,
            )

    def zero_grad(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What is remembered between steps, named `<parameter>/<quantity>`."""
        return {
            f"{name}/{quantity}": tensor
            for name, state in self._state.items()
            for quantity, tensor in state.items()
        }

    def load_state_dict(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `state_dict` gave."""
        self._state = {}
        for key, tensor in tensors.items():
            name, quantity = key.rsplit("/", 1)
            self._state.setdefault(name, {})[quantity] = tensor.to(self._parameters[name].device)

    def _state_of(self, name: str) -> dict[str, torch.Tensor]:
        if name not in self._state:
            parameter = self._parameters[name]
            self._state[name] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self._state[name]
