"""torch.compile for a model some of whose parts decide anew, at each call, what they compute."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.model.gpt import GPT, Loss


def compile_loss(model: GPT, backend: str = "inductor") -> Callable[..., Loss]:
    """`model.loss`, compiled: as a whole, or round the methods that parts list as `eager`.

    Those run as they are (a loop, the choice of experts) and what they call is compiled by itself, once. What
    `eager_throughout` lists (reports) is not compiled at all.
    """
    for part in model.modules():
        for attribute, recursive in (("eager", False), ("eager_throughout", True)):
            for name in getattr(part, attribute, ()):
                setattr(part, name, torch.compiler.disable(getattr(part, name), recursive=recursive))
    return torch.compile(model.loss, backend=backend)
