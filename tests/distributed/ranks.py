"""Ways to start ranks in tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import tiny

LAUNCH = "import sys; from pipeline.distributed.launch import launch; sys.exit(launch(sys.argv[1:]))"
CLEARED = ("NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "DVC_STAGE", "DVC_ROOT")


def environment(ranks: int | str, **others: str) -> dict[str, str]:
    """An environment that asks for so many processes, with one thread each."""
    kept = {name: value for name, value in os.environ.items() if name not in CLEARED}
    return kept | {"NPROC": str(ranks), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tiny.ROOT), **others}


def launch_module(ranks: int, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module on so many ranks."""
    program = [sys.executable, "-c", LAUNCH, "-m", module, *arguments]
    return subprocess.run(program, env=environment(ranks), capture_output=True, text=True, timeout=600)


def train(
    folder: Path, ranks: int | str, *overrides: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the train stage of the project in `folder` on so many ranks."""
    return subprocess.run(
        train_command(*overrides),
        cwd=folder,
        env=environment(ranks, **variables),
        capture_output=True,
        text=True,
        timeout=300,
    )


def train_command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "stages.train", *(word for one in overrides for word in ("-S", one))]
