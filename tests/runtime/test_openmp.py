"""OpenMP's idle threads give way soon, unless the user wants otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline import SPIN_COUNT
from tests import tiny

# What the environment says at the moment when PyTorch, and with it OpenMP's library, is imported.
WATCH = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.exit()
sys.meta_path.insert(0, Watch())
import MODULE
import torch
"""


def seen(module: str, **settings: str) -> str:
    environment = {name: value for name, value in os.environ.items() if "OMP_" not in name} | settings
    command = [sys.executable, "-c", WATCH.replace("MODULE", module)]
    ended = subprocess.run(
        command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return ended.stdout.strip()


@pytest.mark.parametrize("module", ["stages.train", "stages.sample", "stages.eval_baselines"])
def test_it_is_set_before_pytorch_is_imported(module: str) -> None:
    assert seen(module) == SPIN_COUNT


def test_what_the_user_has_set_stays() -> None:
    assert seen("stages.train", GOMP_SPINCOUNT="7") == "7"
    assert seen("stages.train", OMP_WAIT_POLICY="passive") == "None"
