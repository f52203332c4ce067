"""torch.compile for a model with methods that must stay eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.model.hooks import Part


def compiled(model: nn.Module, backend: str = "inductor") -> Callable[..., Any]:
    """Compile `model`, except for the methods that its parts list in `eager` and `eager_recursively`.

    Use `model` itself to save or load: it stays the same module, so parameter names are unchanged.
    """
    for part in model.modules():
        if isinstance(part, Part):
            for names, recursive in ((part.eager, False), (part.eager_recursively, True)):
                for name in names:
                    setattr(part, name, torch.compiler.disable(getattr(part, name), recursive=recursive))
    module: Callable[..., Any] = torch.compile(model, backend=backend)
    return module
