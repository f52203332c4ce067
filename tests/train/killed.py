"""A tiny training that kills itself, once its trackers hold more than its last checkpoint.

Called with the folder of the tokens, that of the runs, and overrides.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pipeline.train.loop import Trainer
from tests.track.shown import in_tensorboard
from tests.train.runs import Runs

STEP = 14
log_and_save = Trainer._evaluate_log_and_save


def then_die(trainer: Trainer, *arguments: Any) -> None:
    log_and_save(trainer, *arguments)
    while trainer.state.step == STEP:
        with suppress(OSError):  # no file yet
            folder = trainer.run.folder
            shown = in_tensorboard(folder / "tensorboard")
            if (STEP in [step for step, _ in shown.get("train/loss", [])]) and wandb_has_begun(folder):
                trainer._background.wait()
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)


def wandb_has_begun(folder: Path) -> bool:
    """It keeps what it writes in memory for a while."""
    return any(folder.glob("wandb/offline-run-*/*.wandb"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    Trainer._evaluate_log_and_save = then_die  # type: ignore[method-assign, assignment]
    Runs(Path(sys.argv[1]), Path(sys.argv[2]))(*sys.argv[3:])
