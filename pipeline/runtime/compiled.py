"""torch.compile for a model some of whose parts decide anew, at each call, what they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.model.part import Part


def compiled(model: nn.Module, backend: str = "inductor") -> Callable[..., Any]:
    """`model`, compiled: as a whole, or around the methods that its parts list as `eager`.

    Its parameters keep their names, because the model itself stays as it is.
    """
    for part in model.modules():
        if isinstance(part, Part):
            for names, recursive in ((part.eager, False), (part.eager_recursively, True)):
                for name in names:
                    setattr(part, name, torch.compiler.disable(getattr(part, name), recursive=recursive))
    module: Callable[..., Any] = torch.compile(model, backend=backend)
    return module
