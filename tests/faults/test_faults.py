"""A few trials of each row of the fault matrix, drawn with a seed; `make faults` runs all of them."""

from __future__ import annotations

import subprocess
import sys

from tests import tiny


def test_promises_hold() -> None:
    command = [sys.executable, "-m", "tests.faults", "--quick"]
    ended = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
