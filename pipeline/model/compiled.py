"""torch.compile for a model some of whose parts decide anew, at each call, what they compute."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.model.gpt import GPT, Loss


def compile_loss(model: GPT, backend: str = "inductor") -> Callable[..., Loss]:
    """`model.loss`, compiled: as a whole, or round the parts marked `eager`.

    Those run as they are (a loop, the choice of experts) and what they call is compiled by itself, once.
    """
    for part in model.modules():
        if getattr(part, "eager", False):
            part.forward = torch.compiler.disable(part.forward, recursive=False)
    return torch.compile(model.loss, backend=backend)
