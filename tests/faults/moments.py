"""Does harm at a moment of a training: in a step, an evaluation or a save."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.operations import Inject, Operation, Operations


def killed_after_step(number: int) -> Inject:
    def kill(_: object) -> None:
        time.sleep(0.5)  # what is being saved meanwhile is saved
        os.kill(os.getpid(), signal.SIGKILL)

    return at_step(number, kill)


def at_step(number: int, act: Callable[[Any], object]) -> Inject:
    """Call `act` with the model at the end of the `number`-th step that this process takes."""

    def inject(_: Path) -> None:
        from pipeline.model.gpt import GPT

        after_step, steps = GPT.after_step, 0

        def hooked(model: GPT, *args: Any) -> None:
            nonlocal steps
            after_step(model, *args)
            steps += 1
            if steps == number:
                act(model)

        setattr(GPT, "after_step", hooked)  # noqa: B010

    return inject


def at_evaluation(number: int, act: Callable[[], object]) -> Inject:
    """Call `act` in the middle of the `number`-th evaluation."""

    def inject(_: Path) -> None:
        from pipeline.train.loop import Trainer

        evaluate, calls = Trainer.evaluate, 0

        def hooked(trainer: Trainer, *args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number:
                act()
            return evaluate(trainer, *args, **options)

        setattr(Trainer, "evaluate", hooked)  # noqa: B010

    return inject


def at_gathering(act: Callable[[], object]) -> Inject:
    """Call `act` when half of the tensors of the checkpoint of step 20 are collected from the ranks."""

    def inject(_: Path) -> None:
        from pipeline.train.checkpoint import Snapshot

        take, calls = Snapshot.take, 0

        def hooked(snapshot: Snapshot, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal calls
            calls += 1
            if (
                calls == 5
            ):  # after the best models of steps 0 and 20, and the checkpoint of step 10, which is two
                take(snapshot, dict(list(tensors.items())[: len(tensors) // 2]))
                act()
            return take(snapshot, tensors)

        setattr(Snapshot, "take", hooked)  # noqa: B010

    return inject


def at_writing(act: Callable[[], object]) -> Inject:
    """Call `act` when half of the optimizer's state of step 20 is in its file."""

    def meet(operation: Operation) -> None:
        state = operation.path.endswith("step-000000020.tmp/optimizer.safetensors")
        if state and operation.kind == "serialize_file":
            operation.half()
            act()

    return lambda root: Operations(root, meet).install()
