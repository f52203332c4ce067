"""`repro` ends when it is told to, and takes DVC with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

DVC = """
import time
print("started", flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_dvc_and_the_status_tells_so(tmp_path: Path, number: signal.Signals) -> None:
    """DVC's end makes a training save and stop, see tests/runtime/test_stop.py."""
    (tmp_path / "dvc").mkdir()
    (tmp_path / "dvc/__init__.py").touch()
    (tmp_path / "dvc/__main__.py").write_text(DVC)
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from pipeline.cli.repro import dvc; sys.exit(dvc('repro'))"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tiny.ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    process.send_signal(number)
    assert process.wait(20) == 128 + signal.SIGTERM
    process.stdout.close()
