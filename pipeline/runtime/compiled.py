"""torch.compile for the parts of a model that take the time: a block, and the head with the loss."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from platformdirs import user_cache_path

from pipeline.model.block import Block
from pipeline.model.gpt import GPT
from pipeline.model.hooks import Part, when_training

CACHE_FOLDER = "TORCHINDUCTOR_CACHE_DIR"  # the environment variable that PyTorch reads


def compiled(model: GPT, backend: str | Callable[..., Any] = "inductor") -> GPT:
    """Compile the blocks of `model`, and its head with the loss, for training; return the model.

    All blocks share one compiled code, however many there are. What runs them, a stack or a loop, is not
    compiled. Nor are the methods that parts list in `eager`, and a model in evaluation mode.
    """
    _keep_machine_code()
    for kind in {type(part) for part in model.modules() if isinstance(part, Part)}:
        for name in kind.eager:  # of the class: a function of each layer's own would be compiled for each
            setattr(kind, name, torch.compiler.disable(getattr(kind, name)))
    forward = torch.compile(Block.forward, backend=backend)
    for block in model.modules():
        if isinstance(block, Block):
            when_training(block, "forward", partial(forward, block))
    loss = torch.compile(type(model.head).loss, backend=backend)
    when_training(model.head, "loss", partial(loss, model.head))
    return model


def _keep_machine_code() -> None:
    """Let the compiler keep its code in the user's cache folder, so that the next run starts in seconds.

    By default it is in the system's folder for temporary files.
    """
    if CACHE_FOLDER not in os.environ:
        folder = user_cache_path("gpt-pipeline") / "compiled"
        with suppress(OSError):  # a folder that cannot be written to
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[CACHE_FOLDER] = str(folder)
