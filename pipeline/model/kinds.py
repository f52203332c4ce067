"""What a parameter is for, which decides how it is updated."""

from __future__ import annotations

import re

from torch import nn


def kind_of(name: str, parameter: nn.Parameter) -> str:
    """What a parameter is: a matrix of the blocks, an embedding, an output projection (head) or a vector.

    The matrices of routers and stopping gates count as output projections: each row scores one choice.
    """
    if parameter.dim() < 2 or name.endswith("bias"):  # experts' biases are stacked, but are biases
        return "vector"
    if re.search(r"\b(wte|wpe|vte)\b", name):
        return "embedding"
    return "head" if re.search(r"\b(lm_head|router|halting)\b", name) else "matrix"
